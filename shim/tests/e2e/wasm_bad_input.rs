//! Modules made to do harm: refused in one sentence or ended like any other, and nothing is left of them.
use crate::bad_input::clear;
use crate::harness::spec::Spec;
use crate::harness::{Case, Kind, Test};
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use test_images::assemble;

pub const CASES: &[Case] = &[
    Case::new("empty", |test| {
        clear(test, as_module(test, b"")?.run()?.output()?, &["/m.wasm", "not a valid module"])?;
        // Without the annotation it is a program, which the kernel refuses.
        let output = module(test, b"")?.run()?.id(&test.other("program")).output()?;
        output.refused(&["/m.wasm", "permission denied"]).map(drop)
    })
    .kinds(CORE),
    Case::new("zeros_of_200_mb", |test| {
        let spec = with_file(test, |file| {
            file.write_all_at(b"\0asm\x01\0\0\0", 0)?;
            file.set_len(200 << 20)
        })?;
        clear(test, spec.run()?.output()?, &["/m.wasm", "not a valid module"])
    })
    .kinds(CORE),
    Case::new("larger_than_is_read", |test| {
        let spec = with_file(test, |file| {
            file.write_all_at(b"\0asm\x01\0\0\0", 0)?;
            file.set_len(1 << 40)
        })?;
        clear(test, spec.run()?.output()?, &["/m.wasm", "1099511627776 bytes"])
    })
    .kinds(CORE),
    Case::new("data_of_200_mb", |test| {
        const DATA: usize = 200 << 20;
        let mut segment = [&[1, 0, 0x41, 0, 0x0b], leb(DATA).as_slice()].concat();
        segment.resize(segment.len() + DATA, b'x');
        let memory = section(5, &[&[1, 0], leb(3200).as_slice()].concat());
        let start = [section(1, &[1, 0x60, 0, 0]), section(3, &[1, 0]), memory];
        let export = section(7, b"\x01\x06_start\0\0");
        let code = section(10, &[1, 2, 0, 0x0b]);
        let all = [start.concat(), export, code, section(11, &segment)].concat();
        // It is one as any other.
        module(test, &[b"\0asm\x01\0\0\0", all.as_slice()].concat())?.run()?.done()?;
        remove_largest(test)
    })
    .kinds(CORE),
    Case::new("code_of_200_mb", |test| {
        let body = 200 << 20;
        let mut code = [&[1], leb(body).as_slice()].concat();
        // nop
        code.resize(code.len() + body, 1);
        let all = [section(1, &[1, 0x60, 0, 0]), section(3, &[1, 0]), section(10, &code)].concat();
        let spec = module(test, &[b"\0asm\x01\0\0\0", all.as_slice()].concat())?;
        clear(test, spec.run()?.output()?, &["/m.wasm", "not a valid module", "size"])
    })
    .kinds(CORE),
    Case::new("text_is_told_without_an_annotation", |test| {
        for (number, text) in
            ["(module)", ";; a comment\n(module)", " \n(; (; and ;) ;)\n( component )"].iter().enumerate()
        {
            let output = module(test, text.as_bytes())?.run()?.id(&test.other(&number.to_string())).output()?;
            clear(test, output, &["/m.wasm", "WebAssembly text"])?;
        }
        // What is none is a program, which the kernel refuses.
        for (number, text) in [";; (module", "(modules)", "(; (module)"].iter().enumerate() {
            let output = module(test, text.as_bytes())?.run()?.id(&test.other(&format!("program{number}"))).output()?;
            output.refused(&["/m.wasm", "permission denied"])?;
        }
        Ok(())
    })
    .kinds(CORE),
    Case::new("bombs_of_types", |test| {
        let million = [leb(1_000_001), [0x60, 0, 0].repeat(1_000_001)].concat();
        let types = [b"\0asm\x01\0\0\0".to_vec(), section(1, &million)].concat();
        // Each is two of the one before.
        let doubled: String = (1..100).map(|n| format!("(type $t{n} (tuple $t{0} $t{0}))", n - 1)).collect();
        let doubled = format!("(component (type $t0 (tuple u8 u8)) {doubled})");
        // One in the other, which is allowed.
        let header = b"\0asm\x0d\0\x01\0";
        let nested = (0..2_000).fold(header.to_vec(), |inner, _| [header, section(4, &inner).as_slice()].concat());
        let instances = format!("(component (core module $m) {})", "(core instance (instantiate $m))".repeat(100_000));
        let aliases: String = (1..60)
            .map(|n| {
                format!(
                    r#"(type $i{n} (instance (alias outer 1 $i{0} (type $t)) (export "a" (instance (type $t)))
                    (export "b" (instance (type $t)))))"#,
                    n - 1
                )
            })
            .collect();
        let aliases = format!(r#"(component (type $i0 (instance)) {aliases} (import "x" (instance (type $i59))))"#);
        let invalid = "it is not a valid";
        let bombs = [
            (types, invalid),
            (assemble(&doubled)?, invalid),
            (nested, "no entry point"),
            (assemble(&instances)?, invalid),
            (assemble(&aliases)?, invalid),
        ];
        for (number, (bomb, words)) in bombs.iter().enumerate() {
            let output = module(test, bomb)?.run()?.id(&test.other(&number.to_string())).output()?;
            clear(test, output, &["/m.wasm", words]).with_context(|| format!("bomb {number}"))?;
        }
        Ok(())
    })
    .kinds(CORE),
    Case::new("start_functions_that_loop", |test| {
        let text = r#"(module (func $loop (loop (br 0))) (func (export "_start")) (start $loop))"#;
        for (signal, code) in [("TERM", 143), ("KILL", 137)] {
            let id = test.other(signal);
            let running = module(test, &assemble(text)?)?.run()?.id(&id).spawn()?;
            test.containerd.events.wait_for(&id, "/tasks/start")?;
            ensure!(test.status(&id)? == "RUNNING", "a start function that loops is not running");
            test.kill(&id, signal)?;
            running.finish()?.exits(code)?;
        }
        Ok(())
    })
    .kinds(CORE),
    Case::new("memories_of_gigabytes", |test| {
        let of = |memory: &str| assemble(&format!(r#"(module (memory {memory}) (func (export "_start")))"#));
        // Address space is all that they take: 4 GiB, and 64 GiB of one that is addressed by 64 bits.
        for (number, memory) in ["65536", "i64 1048576"].iter().enumerate() {
            let run = module(test, &of(memory)?)?.run()?;
            run.id(&test.other(&format!("free{number}"))).done()?;
            let limited = module(test, &of(memory)?)?.set("/linux/resources/memory", json!({"limit": 64 << 20}))?;
            let output = limited.run()?.id(&test.other(&format!("limited{number}"))).output()?;
            ensure!(output.code == 1 && output.stderr.contains("memory"), "{memory}: {output}");
        }
        // More than there is address space for.
        let output = module(test, &of("i64 281474976710656")?)?.run()?.output()?;
        ensure!(output.code != 0 && output.stderr.contains("memory"), "{output}");
        Ok(())
    })
    .kinds(CORE),
    Case::new("components_of_other_worlds", |test| {
        let unknown = r#"(component (import "acme:rockets/launch@1.0.0" (instance (export "go" (func)))))"#;
        let version = r#"(component (import "wasi:cli/environment@0.9.0" (instance (export "go" (func)))))"#;
        let keyvalue = r#"(component (import "wasi:keyvalue/store@0.2.0-draft" (instance (export "open" (func)))))"#;
        let candidate = "wasi:clocks/types@0.3.0-rc-2025-09-16";
        let importing = format!(r#"(component (import "{candidate}" (instance)))"#);
        let exporting = r#"(component (instance $i) (export "wasi:cli/run@0.3.0-rc-2026-01-06" (instance $i)))"#;
        let plugin = r#"(component (core module $m (func (export "f"))) (core instance $i (instantiate $m))
            (func (export "acme:plugin/f") (canon lift (core func $i "f"))))"#;
        let cases = [
            (unknown, ["acme:rockets/launch@1.0.0", ""]),
            (version, ["wasi:cli/environment@0.9.0", ""]),
            (keyvalue, ["wasi:keyvalue/store@0.2.0-draft", ""]),
            (&importing, [candidate, "release candidates of WASI 0.3"]),
            (exporting, ["wasi:cli/run@0.3.0-rc-2026-01-06", "release candidates of WASI 0.3"]),
            ("(component)", ["no entry point", "wasi:cli/run@0.2"]),
            (plugin, ["no entry point", "wasi:http/handler@0.3"]),
        ];
        for (number, (text, words)) in cases.iter().enumerate() {
            let output = module(test, &assemble(text)?)?.run()?.id(&test.other(&number.to_string())).output()?;
            clear(test, output, words).with_context(|| (*text).to_owned())?;
        }
        Ok(())
    })
    .kinds(CORE),
    Case::new("precompiled_code_of_an_image", |test| {
        let entry = entry_of(test, 70, "")?;
        let code = fs::read(entry.join("code")).context("reading precompiled code")?;
        clear(test, as_module(test, &code)?.run()?.output()?, &["/m.wasm", "not a valid module"])?;
        let output = module(test, &code)?.run()?.id(&test.other("program")).output()?;
        output.refused(&["/m.wasm", "permission denied"]).map(drop)
    })
    .kinds(CORE),
    Case::new("entries_of_the_cache_that_are_not_ours", |test| {
        let entry = entry_of(test, 80, "made")?;
        let code = entry.join("code");
        let aside = test.containerd.fresh_path("aside");
        let moved = |path: &Path| fs::rename(path, &aside).and_then(|()| symlink(&aside, path));
        type Change<'a> = &'a dyn Fn() -> std::io::Result<()>;
        let changes: [(&str, Change); 9] = [
            ("corrupted", &|| {
                let file = File::options().read(true).write(true).open(&code)?;
                let at = file.metadata()?.len() / 2;
                file.write_all_at(b"corrupted", at)
            }),
            ("truncated", &|| File::options().write(true).open(&code)?.set_len(100)),
            ("of-another-user", &|| chown(&code, Some(1000), None)),
            ("writable", &|| fs::set_permissions(&code, Permissions::from_mode(0o666))),
            ("a-folder-that-is-writable", &|| fs::set_permissions(&entry, Permissions::from_mode(0o777))),
            ("without-facts", &|| fs::write(entry.join("about.json"), "null")),
            ("a-link", &|| moved(&code)),
            ("a-folder-that-is-a-link", &|| moved(&entry)),
            ("of-another-version", &|| {
                let name = entry.file_name().unwrap_or_default().to_string_lossy();
                let (module, rest) = name.split_at(65);
                let rest = rest.replace(|c: char| c != '-', "0");
                fs::rename(&entry, entry.with_file_name(format!("{module}{rest}")))
            }),
        ];
        for (name, change) in changes {
            change().with_context(|| format!("making an entry {name}"))?;
            let output = module(test, &exits_with(80)?)?.run()?.id(&test.other(name)).output()?;
            output.exits(80).context(name)?;
            ensure!(fs::symlink_metadata(&code)?.is_file(), "no new entry for one that was {name}");
            if aside.is_dir() { fs::remove_dir_all(&aside)? } else { drop(fs::remove_file(&aside)) }
        }
        Ok(())
    })
    .kinds(CORE),
];

const CORE: &[Kind] = &[Kind::Core];

/// LEB128 (core specification, 5.2.2).
fn leb(mut number: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number > 0x7f {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
    bytes
}

fn section(id: u8, content: &[u8]) -> Vec<u8> {
    [&[id], leb(content.len()).as_slice(), content].concat()
}

/// A spec whose program is a file of this content.
pub fn module<'a>(test: &Test<'a>, bytes: &[u8]) -> Result<Spec<'a>> {
    with_file(test, |file| file.write_all_at(bytes, 0))
}

fn with_file<'a>(test: &Test<'a>, fill: impl FnOnce(&File) -> std::io::Result<()>) -> Result<Spec<'a>> {
    let path = test.containerd.fresh_path("module");
    File::create(&path).and_then(|file| fill(&file)).with_context(|| format!("writing {}", path.display()))?;
    let mount = json!({"destination": "/m.wasm", "type": "bind", "source": path, "options": ["bind", "ro"]});
    test.spec(&[])?.mount(mount)?.set("/process/args", json!(["/m.wasm"]))
}

/// The same where an annotation says that it is WebAssembly.
fn as_module<'a>(test: &Test<'a>, bytes: &[u8]) -> Result<Spec<'a>> {
    module(test, bytes)?.set("/annotations", json!({"io.containerd.hybrid.executor": "wasm"}))
}

fn exits_with(code: u32) -> Result<Vec<u8>> {
    assemble(&format!(
        r#"(module (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
            (memory (export "memory") 1) (func (export "_start") (call $exit (i32.const {code}))))"#
    ))
}

/// The cache entry that running a module with this exit code makes.
fn entry_of(test: &Test, code: u32, suffix: &str) -> Result<PathBuf> {
    let module_of = exits_with(code)?;
    module(test, &module_of)?.run()?.id(&test.other(&format!("made{suffix}"))).output()?.exits(code as i32)?;
    let digest = sha256(test, &module_of)?;
    let entries = fs::read_dir(test.containerd.wasm_cache()).context("reading the cache")?;
    let names = entries.filter_map(|entry| Some(entry.ok()?.path()));
    names
        .into_iter()
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&digest)))
        .with_context(|| format!("no entry for {digest}"))
}

fn sha256(test: &Test, bytes: &[u8]) -> Result<String> {
    let path = test.containerd.fresh_path("digest");
    fs::write(&path, bytes).context("writing a module")?;
    let output = crate::harness::command::output(std::process::Command::new("sha256sum").arg(&path), b"")?.exits(0)?;
    Ok(output.stdout.split_whitespace().next().context("no digest")?.to_owned())
}

/// Removes what a large module left in the cache, as an administrator may at any time.
fn remove_largest(test: &Test) -> Result<()> {
    for entry in fs::read_dir(test.containerd.wasm_cache()).context("reading the cache")? {
        let entry = entry?.path();
        if fs::metadata(entry.join("code")).is_ok_and(|code| code.len() > 200 << 20) {
            fs::remove_dir_all(&entry).with_context(|| format!("removing {}", entry.display()))?;
        }
    }
    Ok(())
}
