//! Everything, into a document: each command's tables take the place of what stands between
//! `<!-- NAME -->` and `<!-- /NAME -->` there, its lines and the plots go beside it. What people
//! wrote around the marks stays.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::options::Options;
use crate::{Fallible, load, plot};

/// A part's name in the document, and the arguments that measure it.
const PARTS: [(&str, &[&str]); 7] = [
    ("table", &["table", "--seconds", "0.5"]),
    ("spin", &["spin", "--seconds", "0.5"]),
    ("scale", &["scale", "--pairs", "3", "--seconds", "0.5"]),
    (
        "sweep",
        &[
            "table",
            "--workloads",
            "sweep",
            "--pairs",
            "3",
            "--seconds",
            "0.5",
        ],
    ),
    ("seed", &["seed"]),
    ("memory", &["memory"]),
    ("instructions", &["instructions"]),
];

/// The command. It takes half an hour.
pub fn run(options: &Options) -> Fallible<()> {
    fs::create_dir_all(&options.out)?;
    if let Some(unknown) = (options.parts.iter()).find(|part| PARTS.iter().all(|of| of.0 != *part))
    {
        return Err(format!("there is no part {unknown}").into());
    }
    for (name, args) in PARTS {
        if !options.parts.is_empty() && !options.parts.iter().any(|part| part == name) {
            continue;
        }
        eprintln!("{name}: {}", args.join(" "));
        let lines = options.out.join(format!("{name}.jsonl"));
        let output = Command::new(std::env::current_exe()?)
            .args(args)
            .arg("--json")
            .arg(&lines)
            .stderr(Stdio::inherit())
            .output()?;
        if !output.status.success() {
            return Err(format!("{name} failed").into());
        }
        let tables = String::from_utf8(output.stdout)?;
        let text = format!(
            "`{}`, {}\n\n{}",
            args.join(" "),
            circumstances(),
            tables.trim()
        );
        insert(&options.document, name, &text)?;
    }
    plot::draw_all(&options.out, &options.out)
}

/// Puts a text between the marks of its name.
fn insert(document: &Path, name: &str, text: &str) -> Fallible<()> {
    let before = fs::read_to_string(document)?;
    let (start, end) = (format!("<!-- {name} -->"), format!("<!-- /{name} -->"));
    let places = (before.find(&start), before.find(&end));
    let (Some(from), Some(to)) = places else {
        return Err(format!("{} has no place for {name}", document.display()).into());
    };
    let head = &before[..from + start.len()];
    fs::write(document, format!("{head}\n{text}\n{}", &before[to..]))?;
    Ok(())
}

/// When, of what, and on what it was measured.
fn circumstances() -> String {
    let said = |program: &str, args: &[&str]| {
        let output = Command::new(program).args(args).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        Some(text.trim().to_string()).filter(|text| !text.is_empty())
    };
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1));
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let parts = [
        said("date", &["-u", "+%F"]),
        said("git", &["rev-parse", "--short", "HEAD"]).map(|commit| format!("commit {commit}")),
        said("uname", &["-sr"]),
        Some(format!("{cores} cores")),
        model.map(String::from),
        said("rustc", &["--version"]),
        Some(format!("load on {}", load::means())),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}
