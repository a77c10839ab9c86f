//! A WebAssembly module is found if and only if it is one, and whatever lies in the cache is read or passed over.

use std::os::fd::AsFd;
use std::path::Path;

use runner::{Entry, Facts, Imports, World};
use serde_json::{Value, json};

use super::properties::Random;
use super::{about, detector};
use crate::Kind;

/// How many arguments are tried.
const ROUNDS: usize = 5000;

/// What paths are made of: what is there, what isn't, and what has a meaning.
const PARTS: [&str; 25] = [
    "/", "/", "/", "..", ".", "#", "#", "##", "m.wasm", "a#b.wasm", "text.wat", "program", "comment", "empty", "loop",
    "out", "d", "run", "_start", "ü", "\u{202e}", " ", "\n", ":", "%00",
];

/// The files of the root: its modules are those that the detector has to find.
const FILES: [(&str, &[u8], bool); 8] = [
    ("m.wasm", b"\0asm\x01\0\0\0", true),
    ("a#b.wasm", b"\0asm\x0d\0\x01\0", true),
    ("d/m.wasm", b"\0asm", true),
    ("text.wat", b";; (;\n (; (module ;) (module)", true),
    ("comment", b"; (module)", false),
    ("program", b"\x7fELF", false),
    ("short", b"\0as", false),
    ("empty", b"", false),
];

fn root() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    std::fs::create_dir(root.path().join("d")).unwrap();
    for (name, content, _) in FILES {
        std::fs::write(root.path().join(name), content).unwrap();
    }
    for (name, to) in [("loop", "loop"), ("out", "../../../../../../../../proc/self/exe"), ("in", "/d/m.wasm")] {
        std::os::unix::fs::symlink(to, root.path().join(name)).unwrap();
    }
    root
}

fn process(program: &str, path: &str, cwd: &str) -> Value {
    json!({"args": [program], "cwd": cwd, "env": [format!("PATH={path}")], "user": {"uid": 0, "gid": 0}})
}

#[test]
fn modules_are_found_and_nothing_else() {
    let (root, mut random) = (root(), Random(0x5eed_0003));
    let folder = std::fs::File::open(root.path()).unwrap();
    let (mut found, mut refused) = (0, 0);
    for _ in 0..ROUNDS {
        let mut some = |most| (0..random.below(most)).map(|_| *random.one(&PARTS)).collect::<String>();
        let (mut program, path, cwd) = (some(6), some(8), format!("/{}", some(3)));
        if random.below(50) == 0 {
            program = program.repeat(2000);
        }
        let spec = process(&program, &path, &cwd);
        match detector(spec.to_string().as_bytes(), folder.as_fd()) {
            Ok(None) => {}
            Ok(Some((module, function))) => {
                found += 1;
                // What was asked for, and nothing made up.
                let called = function.as_ref().map_or(module.clone(), |function| format!("{module}#{function}"));
                assert!(called.ends_with(&program), "{spec}: {called}");
                assert!(function.is_none_or(|function| !function.is_empty()), "{spec}");
                // Links are followed inside the root, where `..` ends too.
                let file = inside(root.path(), Path::new(&module));
                let module = FILES.iter().find(|(name, ..)| root.path().join(name) == file);
                assert!(module.is_some_and(|(.., is_module)| *is_module), "{spec}: {file:?}");
            }
            Err(error) => {
                refused += 1;
                assert_eq!(error.kind(), Kind::InvalidArgument, "{spec}: {error}");
                assert!(error.to_string().starts_with("process"), "{spec}: {error}");
            }
        }
    }
    // All three happen, or the arguments are none.
    assert!(found > ROUNDS / 100 && refused > ROUNDS / 1000 && found + refused < ROUNDS / 2, "{found}, {refused}");
}

/// What a path leads to below a root without links: the test's own links are none of the modules' names.
fn inside(root: &Path, path: &Path) -> std::path::PathBuf {
    let mut file = root.to_owned();
    for part in path.components() {
        match part {
            std::path::Component::Normal(name) => file.push(name),
            std::path::Component::ParentDir if file != root => drop(file.pop()),
            _ => {}
        }
    }
    file
}

#[test]
fn each_file_is_told_by_its_head() {
    let root = root();
    let folder = std::fs::File::open(root.path()).unwrap();
    let find = |program: &str| detector(process(program, "/d:/", "/").to_string().as_bytes(), folder.as_fd()).unwrap();
    for (name, _, is_module) in FILES {
        assert_eq!(find(&format!("/{name}")).is_some(), is_module, "{name}");
        assert_eq!(find(&format!("/{name}#f")).is_some(), is_module, "{name}");
    }
    let some = |path: &str, function: Option<&str>| Some((path.to_owned(), function.map(str::to_owned)));
    assert_eq!(find("m.wasm#f"), some("/d/m.wasm", Some("f")));
    assert_eq!(find("a#b.wasm"), some("/a#b.wasm", None));
    assert_eq!(find("/a#b.wasm#f#g"), None);
    assert_eq!(find("/in"), some("/in", None));
    assert_eq!((find("/loop"), find("/out"), find("/d"), find("/short")), (None, None, None, None));
}

#[test]
fn any_text_is_facts_or_is_not() {
    let imports = Imports::default();
    let facts = Facts { world: World::Core, entries: vec![Entry::Start], functions: vec!["f".to_owned()], imports };
    let good = json!({"facts": facts, "length": 5, "changed": [1, 2], "digest": "00"}).to_string();
    assert!(about(good.as_bytes()));
    let (mut random, mut kept) = (Random(0x5eed_0004), 0);
    for _ in 0..ROUNDS {
        let mut text = good.clone().into_bytes();
        for _ in 0..=random.below(3) {
            let at = random.below(text.len().max(1));
            match random.below(4) {
                0 => text.truncate(at),
                1 if !text.is_empty() => text[at] ^= 1 << random.below(8),
                2 => drop(text.splice(at..at, [b'[', b'"', b'{', 0xff, b'9'][random.below(5)..].iter().copied())),
                _ => drop(text.splice(at..at, std::iter::repeat_n(b'[', random.below(500)))),
            }
        }
        kept += usize::from(about(&text));
    }
    // A digit or a letter may change, and it is still such a text; most are not.
    assert!(kept > 0 && kept < ROUNDS / 4, "{kept}");
    // More than an entry has.
    let long = good.replacen("\"f\"", &format!("\"{}\"", "f".repeat(2 << 20)), 1);
    assert!(!about(long.as_bytes()));
}
