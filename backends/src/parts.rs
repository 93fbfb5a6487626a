//! `Parts`: the buffers of one vectored write, and how far it has come. In contrast to a
//! [`Batch`](crate::batch::Batch), which joins several writes, they are one write with one result.

use crate::buffer::Buffer;

/// The parts of one vectored write.
pub(crate) struct Parts {
    buffers: Vec<Buffer>,
    /// The number of bytes in all parts.
    len_bytes: usize,
    /// The part with the next byte to write, as far as is known, and the number of bytes before it. The
    /// search for that byte starts here, so that a write of many parts looks at each once.
    reached: (usize, usize),
}

impl Parts {
    pub(crate) fn new(buffers: Vec<Buffer>) -> Self {
        let lens = buffers.iter().map(|part| part.len());
        Parts {
            len_bytes: lens.fold(0, usize::saturating_add),
            buffers,
            reached: (0, 0),
        }
    }

    pub(crate) fn len_bytes(&self) -> usize {
        self.len_bytes
    }

    pub(crate) fn into_buffers(self) -> Vec<Buffer> {
        self.buffers
    }

    /// All bytes, copied into one vector.
    pub(crate) fn to_vec(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.len_bytes);
        for part in &self.buffers {
            bytes.extend_from_slice(part);
        }
        bytes
    }

    /// The parts that are not empty, from the byte on to which the write has come.
    pub(crate) fn rest(&mut self, done: usize) -> impl Iterator<Item = &[u8]> {
        if done < self.reached.1 {
            self.reached = (0, 0);
        }
        let (mut index, mut before) = self.reached;
        while let Some(part) = self.buffers.get(index)
            && before + part.len() <= done
        {
            before += part.len();
            index += 1;
        }
        self.reached = (index, before);
        let mut skipped = done - before;
        let rest = self.buffers.get(index..).unwrap_or_default().iter();
        let rest =
            rest.map(move |part| part.get(std::mem::take(&mut skipped)..).unwrap_or_default());
        rest.filter(|part| !part.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rest(parts: &mut Parts, done: usize) -> Vec<Vec<u8>> {
        parts.rest(done).map(<[u8]>::to_vec).collect()
    }

    #[test]
    fn goes_on_in_the_middle_of_a_part() {
        let texts = ["", "ab", "", "", "cde", "f", ""];
        let mut parts = Parts::new(texts.map(Buffer::from).into());
        let all = b"abcdef";
        assert_eq!(parts.len_bytes(), all.len());
        assert_eq!(parts.to_vec(), all);
        assert_eq!(
            rest(&mut parts, 0),
            ["ab", "cde", "f"].map(|it| it.as_bytes().to_vec())
        );
        for done in (0..=all.len()).chain([2, 1, 6, 0]) {
            assert_eq!(rest(&mut parts, done).concat(), all[done..]);
        }
        assert_eq!(rest(&mut parts, 3)[0], b"de");
        assert_eq!(parts.into_buffers().len(), texts.len());
    }
}
