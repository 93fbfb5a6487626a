//! Sets one `cfg` for each backend that the target can have: `gaio_uring`, `gaio_epoll`,
//! `gaio_kqueue`. All other code tests these names, never an operating system.
//!
//! `gaio_kqueue_model` comes from outside: `RUSTFLAGS="--cfg gaio_kqueue_model"` gives Linux the
//! kqueue backend over a model of kqueue. Only the tests use it.

use std::env::{var, var_os};

const BACKENDS: [&str; 3] = ["gaio_uring", "gaio_epoll", "gaio_kqueue"];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    for name in BACKENDS.iter().chain(&["gaio_kqueue_model"]) {
        println!("cargo::rustc-check-cfg=cfg({name})");
    }
    for name in backends() {
        println!("cargo::rustc-cfg={name}");
    }
}

fn backends() -> Vec<&'static str> {
    let target = |what| var(format!("CARGO_CFG_TARGET_{what}")).unwrap_or_default();
    // A kevent carries the 64 bits of a token in a pointer.
    let wide = target("POINTER_WIDTH") == "64";
    match target("OS").as_str() {
        "linux" if var_os("CARGO_CFG_GAIO_KQUEUE_MODEL").is_some() => BACKENDS.to_vec(),
        "linux" => vec!["gaio_uring", "gaio_epoll"],
        "android" => vec!["gaio_epoll"],
        "freebsd" | "netbsd" | "openbsd" | "dragonfly" if wide => vec!["gaio_kqueue"],
        _ if target("VENDOR") == "apple" && wide => vec!["gaio_kqueue"],
        _ => vec![],
    }
}
