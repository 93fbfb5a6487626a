//! Decides which backends a target can have. Everything else asks for the names set here
//! (`gaio_uring`, `gaio_epoll`), never for an operating system.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let os = std::env::var("CARGO_CFG_TARGET_OS").unwrap_or_default();
    let backends: &[&str] = match os.as_str() {
        "linux" => &["gaio_uring", "gaio_epoll"],
        "android" => &["gaio_epoll"],
        _ => &[],
    };
    for name in ["gaio_uring", "gaio_epoll"] {
        println!("cargo::rustc-check-cfg=cfg({name})");
    }
    for name in backends {
        println!("cargo::rustc-cfg={name}");
    }
}
