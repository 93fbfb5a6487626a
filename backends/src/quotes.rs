//! Texts that errors quote. An error is eight bytes and `Copy`, so it carries a number in place of
//! a text. The text is kept here as long as the process lives.

use std::sync::{Mutex, PoisonError};

/// The greatest number of texts kept, and their greatest length. So a program that asks with ever
/// other names does not fill the memory.
const COUNT_MAX: usize = 64;
const CHARS_MAX: usize = 64;

/// The number of every text that was not kept.
const NOT_KEPT: i32 = i32::MIN;

static TEXTS: Mutex<Vec<&'static str>> = Mutex::new(Vec::new());

/// Keeps a text. Its number is below zero, unlike the system's error numbers.
pub(crate) fn keep(text: &str) -> i32 {
    let text: String = text.chars().take(CHARS_MAX).collect();
    let mut texts = TEXTS.lock().unwrap_or_else(PoisonError::into_inner);
    let known = texts.iter().position(|it| *it == text);
    if known.is_none() && texts.len() == COUNT_MAX {
        return NOT_KEPT;
    }
    let index = known.unwrap_or_else(|| {
        texts.push(text.leak());
        texts.len() - 1
    });
    -1 - index as i32
}

/// The text with this number, if it was kept.
pub(crate) fn find(number: i32) -> Option<&'static str> {
    let index = usize::try_from(-1 - i64::from(number)).ok()?;
    let texts = TEXTS.lock().unwrap_or_else(PoisonError::into_inner);
    texts.get(index).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_number_stands_for_its_text() {
        let numbers: Vec<i32> = (0..2 * COUNT_MAX)
            .map(|it| keep(&format!("text {it}")))
            .collect();
        assert!(numbers.iter().all(|&number| number < 0));
        for (it, &number) in numbers.iter().enumerate() {
            let text = find(number);
            let kept = text == Some(format!("text {it}").as_str());
            assert!(
                kept || (text.is_none() && number == NOT_KEPT),
                "{it}: {text:?}"
            );
        }
        assert_eq!(keep("text 0"), numbers[0], "once");
        assert_eq!(find(numbers[1]), Some("text 1"));
        assert_eq!((find(0), find(libc::ENOENT)), (None, None));
    }
}
