#![no_main]
//! What a process is, by its arguments and the files below a root: a module, none, or an error, never a panic. The first
//! line is the process, the rest the file `/m`. See `executors::fuzzing`.

use std::os::fd::AsFd;
use std::sync::LazyLock;

use executors::Kind;
use libfuzzer_sys::fuzz_target;

static ROOT: LazyLock<std::path::PathBuf> = LazyLock::new(|| {
    let root = std::env::temp_dir().join(format!("hybrid-detector-{}", std::process::id()));
    std::fs::create_dir_all(&root).expect("make the root");
    root
});

fuzz_target!(|input: &[u8]| {
    let (process, module) = input.split_at(input.iter().position(|byte| *byte == b'\n').unwrap_or(input.len()));
    let module = module.get(1..).unwrap_or_default();
    std::fs::write(ROOT.join("m"), module).expect("write the module");
    let root = std::fs::File::open(&*ROOT).expect("open the root");
    match executors::fuzzing::detector(process, root.as_fd()) {
        Ok(None) => {}
        Ok(Some(_)) => assert!([&b"\0asm"[..], b"(mod", b"(com"].iter().any(|head| module.starts_with(head))),
        Err(error) => assert!(matches!(error.kind(), Kind::InvalidArgument | Kind::Unimplemented), "{error:?}"),
    }
});
