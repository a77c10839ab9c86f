//! Modules in containers, without containerd: what is refused, how guests end, and the cache of compiled code. Needs root.

use std::fs::{File, Permissions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use executors::{Bundle, Container, CreateOptions, Error, Kind};
use libtest_mimic::{Arguments, Trial};

#[path = "wasm/cache.rs"]
mod cache;

fn main() -> ExitCode {
    if let Some(code) = executors::wasm::entry() {
        return code;
    }
    // SAFETY: no other thread exists yet.
    unsafe { std::env::set_var("HYBRID_WASM_CACHE", folder("cache")) };
    if let [_, cache::REFUSE, bundle] =
        *std::env::args().collect::<Vec<_>>().iter().map(String::as_str).collect::<Vec<_>>()
    {
        cache::refuse(bundle);
        return ExitCode::SUCCESS;
    }
    let trials = TESTS.iter().chain(cache::TESTS).map(|&(name, test)| {
        Trial::test(name, move || {
            test();
            Ok(())
        })
    });
    let mut arguments = Arguments::from_args();
    // Tests of the cache look at all of it.
    arguments.test_threads = Some(1);
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    std::fs::remove_dir_all(folder("")).expect("remove the tests' folder");
    conclusion.exit_code()
}

const TESTS: &[(&str, fn())] = &[
    ("exit_codes_are_the_guests", exit_codes_are_the_guests),
    ("traps_are_told_and_end_with_134", traps_are_told_and_end_with_134),
    ("modules_are_refused_in_a_sentence", modules_are_refused_in_a_sentence),
    ("functions_are_called", functions_are_called),
    ("objects_are_limited", objects_are_limited),
    ("components_run", components_run),
    ("a_module_is_found_in_the_current_folder", a_module_is_found_in_the_current_folder),
    ("commands_of_wasi_0_3_run", commands_of_wasi_0_3_run),
    ("the_newest_entry_point_is_called", the_newest_entry_point_is_called),
    ("wasi_0_3_can_be_turned_off", wasi_0_3_can_be_turned_off),
    ("proposals_can_be_turned_on", proposals_can_be_turned_on),
    ("annotations_are_checked", annotations_are_checked),
    ("text_and_threads_are_refused_by_name", text_and_threads_are_refused_by_name),
    ("memory_is_limited_to_the_containers", memory_is_limited_to_the_containers),
    ("folders_are_given_as_asked", folders_are_given_as_asked),
    ("a_trap_leaves_a_core_dump", a_trap_leaves_a_core_dump),
    ("code_has_a_map_for_perf", code_has_a_map_for_perf),
    ("figures_are_shown_while_it_computes", figures_are_shown_while_it_computes),
    ("signals_end_the_first_process_of_a_namespace", signals_end_the_first_process_of_a_namespace),
    ("a_settled_guest_takes_little_memory", a_settled_guest_takes_little_memory),
    ("too_little_address_space_is_told", too_little_address_space_is_told),
    ("the_second_start_finds_the_code", the_second_start_finds_the_code),
    ("concurrent_starts_compile_once", concurrent_starts_compile_once),
    ("damaged_or_foreign_entries_are_not_used", damaged_or_foreign_entries_are_not_used),
    ("a_module_that_changes_poisons_nothing", a_module_that_changes_poisons_nothing),
    ("the_precompiler_is_confined", the_precompiler_is_confined),
];

const TRUE: &str = r#"(module (func (export "_start")))"#;
const LOOP: &str = r#"(module (memory (export "memory") 1) (func (export "_start") (loop (br 0))))"#;

/// Exits with a code.
fn exit(code: i32) -> String {
    format!(
        r#"(module (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
            (memory (export "memory") 1)
            (func (export "_start") (call $exit (i32.const {code}))))"#
    )
}

/// A command component without imports: its run gives ok (0) or err (1).
fn command(result: i32) -> String {
    format!("(component {})", run_export("wasi:cli/run@0.2.0", "", &format!("(i32.const {result})")))
}

/// The parts of a component that export `run` in an interface of that name. `kind` is empty, or `async` for WASI 0.3.
fn run_export(name: &str, kind: &str, body: &str) -> String {
    format!(
        r#"(component
            (core module $m (func (export "run") (result i32) {body}))
            (core instance $i (instantiate $m))
            (type $t (func {kind} (result (result))))
            (func $run (type $t) (canon lift (core func $i "run")))
            (instance $run (export "run" (func $run)))
            (export "run" (instance $run)))"#
    )
    .replacen("(component", &format!("(component ${}", identifier(name)), 1)
        + &format!(
            r#"(instance ${0}-i (instantiate ${0})) (alias export ${0}-i "run" (instance ${0}-r))
            (export "{name}" (instance ${0}-r))"#,
            identifier(name)
        )
}

/// A name that can stand behind a `$`.
fn identifier(name: &str) -> String {
    name.replace(|c: char| !c.is_ascii_alphanumeric(), "-")
}

/// A command component of WASI 0.3.
fn command03(version: &str, result: i32) -> String {
    let run = run_export(&format!("wasi:cli/run@{version}"), "async", &format!("(i32.const {result})"));
    format!("(component {run})")
}

fn wat(text: &str) -> Vec<u8> {
    wat::parse_str(text).unwrap_or_else(|e| panic!("{e}"))
}

/// A path in the folder that is this run's.
fn folder(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("hybrid-executors-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("make the tests' folder");
    folder.join(name)
}

fn unique() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// A container made of one module, in new namespaces.
struct Run {
    container: Container,
    stderr: File,
}

/// How a guest ended: its exit code, and what it wrote.
struct Ended {
    code: u32,
    stderr: String,
}

fn create_in(bundle: &Path, program: &str, process: &str) -> Result<Run, Error> {
    create_as(bundle, program, process, ["", ""], &CreateOptions::default())
}

fn create_as(
    bundle: &Path,
    program: &str,
    process: &str,
    [more, linux]: [&str; 2],
    options: &CreateOptions,
) -> Result<Run, Error> {
    let spec = format!(
        r#"{{"ociVersion": "1.1.0", "root": {{"path": "rootfs"}},
            "process": {{"args": ["{program}"], "cwd": "/", "user": {{"uid": 0, "gid": 0}}, "noNewPrivileges": true {process}}},
            "linux": {{"namespaces": [{{"type": "pid"}}, {{"type": "mount"}}, {{"type": "ipc"}}, {{"type": "uts"}}]{linux}}}{more}}}"#
    );
    std::fs::write(bundle.join("config.json"), spec).unwrap();
    let stderr =
        File::options().create(true).truncate(true).read(true).write(true).open(bundle.join("stderr")).unwrap();
    let id = format!("test-{}-{}", std::process::id(), unique());
    let streams = executors::Streams { stderr: Some(stderr.try_clone().unwrap().into()), ..Default::default() };
    let stdio = executors::Stdio::Streams(streams);
    let container = executors::create(Bundle::open(&id, bundle)?, &[], stdio, options)?;
    Ok(Run { container, stderr })
}

/// The same with more members of the spec, and options.
fn create_with(module: &[u8], more: &str, options: &CreateOptions) -> Result<Run, Error> {
    create_as(&bundle(module), "/app.wasm", "", [more, ""], options)
}

/// Makes the container of `module`, whose entrypoint is `/app.wasm` and `function` behind it; `process` is more JSON.
fn create(module: &[u8], function: &str, process: &str) -> Result<Run, Error> {
    create_in(&bundle(module), &format!("/app.wasm{function}"), process)
}

fn bundle(module: &[u8]) -> PathBuf {
    let bundle = folder(&format!("bundle-{}", unique()));
    std::fs::create_dir_all(bundle.join("rootfs/dev")).unwrap();
    std::fs::write(bundle.join("rootfs/app.wasm"), module).unwrap();
    bundle
}

impl Run {
    fn start(self) -> Self {
        self.container.init().start().unwrap();
        self
    }

    fn end(mut self) -> Ended {
        let exit = self.container.init();
        let deadline = Instant::now() + Duration::from_secs(30);
        let code = loop {
            if let Some(exit) = exit.reap().unwrap() {
                break exit.code;
            }
            assert!(Instant::now() < deadline, "the guest doesn't end");
            std::thread::yield_now();
        };
        self.container.delete().unwrap();
        let mut stderr = String::new();
        self.stderr.rewind().unwrap();
        self.stderr.read_to_string(&mut stderr).unwrap();
        Ended { code, stderr }
    }
}

fn run(module: &[u8], function: &str) -> Ended {
    create(module, function, "").unwrap().start().end()
}

fn refusal(module: &[u8], function: &str) -> String {
    let Err(error) = create(module, function, "") else { panic!("not refused") };
    assert_eq!(error.kind(), Kind::InvalidArgument, "{error}");
    let text = error.to_string();
    assert!(text.starts_with("module /app.wasm: ") && !text.contains('\n'), "{text}");
    text
}

fn exit_codes_are_the_guests() {
    assert_eq!(run(&wat(TRUE), "").code, 0);
    for (code, expected) in [(0, 0), (42, 42), (126, 126), (200, 200), (255, 255), (256, 0)] {
        assert_eq!(run(&wat(&exit(code)), "").code, expected);
    }
}

fn traps_are_told_and_end_with_134() {
    let cases = [
        ("(unreachable)", "`unreachable`"),
        ("(call $boom)", "call stack exhausted"),
        ("(drop (i32.load (i32.const -1)))", "out of bounds"),
        ("(drop (i32.div_s (i32.const 1) (i32.const 0)))", "divide by zero"),
    ];
    for (body, expected) in cases {
        for start in [r#"(func (export "_start") (call $boom))"#, r#"(func (export "_start")) (start $boom)"#] {
            let ended = run(&wat(&format!("(module (memory 1) (func $boom {body}) {start})")), "");
            assert_eq!(ended.code, 134, "{}", ended.stderr);
            for part in [expected, "boom", "/app.wasm", "wasm backtrace"] {
                assert!(ended.stderr.contains(part), "{part}: {}", ended.stderr);
            }
        }
    }
}

fn modules_are_refused_in_a_sentence() {
    let core = wat(&exit(0));
    let component = wat(&command(0));
    let import = r#"(module (import "env" "launch" (func)) (func (export "_start")))"#;
    let ty = r#"(module (import "wasi_snapshot_preview1" "fd_write" (func)) (func (export "_start")))"#;
    let rocket = r#"(component (import "acme:rockets/launch@1.0.0" (instance (export "go" (func)))))"#;
    let cases: [(Vec<u8>, &str, &str); 12] = [
        (core[..6].to_vec(), "", "not a valid module"),
        (core[..core.len() - 3].to_vec(), "", "unexpected end"),
        (b"\0asm\x09\0\0\0".to_vec(), "", "version"),
        (wat("(module)"), "", "no entry point"),
        (wat(r#"(module (memory (export "_start") 1))"#), "", "no entry point"),
        (wat(import), "", "env::launch"),
        (wat(ty), "", "wasi_snapshot_preview1::fd_write"),
        (wat(TRUE), "#missing", "\"missing\""),
        (component[..component.len() - 3].to_vec(), "", "unexpected end"),
        (wat("(component)"), "", "no entry point"),
        (wat(rocket), "", "acme:rockets/launch@1.0.0"),
        (component, "#missing", "\"missing\""),
    ];
    for (module, function, expected) in cases {
        let text = refusal(&module, function);
        assert!(text.contains(expected), "{expected}: {text}");
    }
    // A name as long and as nasty as it can be.
    let name = "x\\n\\1b[31m".repeat(10_000);
    let text = refusal(&wat(&format!(r#"(module (import "e" "{name}" (func)) (func (export "_start")))"#)), "");
    assert!(text.len() < 2000 && !text.contains('\u{1b}'), "{text}");
    // More exports than anybody reads.
    let exports: String = (0..60_000).map(|n| format!(r#"(export "a name of some length {n}" (func $f))"#)).collect();
    let text = refusal(&wat(&format!(r#"(module (func $f) (export "_start" (func $f)) {exports})"#)), "");
    assert!(text.contains("exports"), "{text}");
}

fn functions_are_called() {
    let module = r#"(module (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
        (memory (export "memory") 1) (global $code (mut i32) (i32.const 0))
        (func (export "_initialize") (global.set $code (i32.const 7)))
        (func (export "_start") (call $exit (i32.const 1)))
        (func (export "leave") (call $exit (global.get $code))))"#;
    assert_eq!(run(&wat(module), "#leave").code, 7);
    assert_eq!(run(&wat(module), "").code, 1);
    let component = r#"(component
        (core module $m (func (export "f") (unreachable))) (core instance $i (instantiate $m))
        (func (export "f") (canon lift (core func $i "f"))))"#;
    assert_eq!(run(&wat(component), "#f").code, 134);
    // Also one of WASI 0.3's kind, and of a service, whose code counts epochs.
    let component = r#"(component
        (core module $m (func (export "f")) (func (export "g") (local $n i32)
            (loop (br_if 0 (i32.lt_u (local.tee $n (i32.add (local.get $n) (i32.const 1))) (i32.const 100_000_000))))))
        (core instance $i (instantiate $m)) (type $t (func async))
        (func (export "f") (type $t) (canon lift (core func $i "f")))
        (func $g (canon lift (core func $i "g"))) (export "g" (func $g))
        (instance $handler (export "handle" (func $g))) (export "wasi:http/handler@0.3.0" (instance $handler)))"#;
    assert_eq!((run(&wat(component), "#f").code, run(&wat(component), "#g").code), (0, 0));
}

/// Instances are counted over all of a component's parts.
fn objects_are_limited() {
    let component = |parts: usize| {
        let (instances, parts) =
            ("(core instance (instantiate $m))".repeat(990), "(instance (instantiate $c))".repeat(parts));
        let run = run_export("wasi:cli/run@0.2.0", "", "(i32.const 0)");
        wat(&format!("(component (component $c (core module $m) {instances}) {parts} {run})"))
    };
    assert_eq!(run(&component(10), "").code, 0);
    let ended = run(&component(11), "");
    assert!(ended.code == 1 && ended.stderr.contains("instance count too high"), "{}: {}", ended.code, ended.stderr);
}

fn components_run() {
    assert_eq!(run(&wat(&command(0)), "").code, 0);
    assert_eq!(run(&wat(&command(1)), "").code, 1);
    // Of any patch version.
    let newer = run_export("wasi:cli/run@0.2.99", "", "(i32.const 0)");
    assert_eq!(run(&wat(&format!("(component {newer})")), "").code, 0);
}

fn a_module_is_found_in_the_current_folder() {
    let bundle = bundle(&wat(&exit(33)));
    assert_eq!(create_in(&bundle, "app.wasm", "").unwrap().start().end().code, 33);
    assert_eq!(create_in(&bundle, "app.wasm#_start", "").unwrap().start().end().code, 33);
}

fn commands_of_wasi_0_3_run() {
    for version in ["0.3.0", "0.3.7"] {
        assert_eq!(run(&wat(&command03(version, 0)), "").code, 0);
        assert_eq!(run(&wat(&command03(version, 1)), "").code, 1);
    }
    // Its interfaces were others.
    let text = refusal(&wat(&command03("0.3.0-rc-2025-09-16", 0)), "");
    assert!(text.contains("wasi:cli/run@0.3.0-rc-2025-09-16: release candidates"), "{text}");
}

fn the_newest_entry_point_is_called() {
    let (old, new) = ("(i32.const 1)", "(i32.const 0)");
    let (old, new) = (run_export("wasi:cli/run@0.2.3", "", old), run_export("wasi:cli/run@0.3.0", "async", new));
    let both = wat(&format!("(component {old} {new})"));
    assert_eq!(run(&both, "").code, 0);
    let ended = create_with(&both, "", &options("WasmWasi03", "false")).unwrap().start().end();
    assert_eq!(ended.code, 1);
}

fn options(name: &str, value: &str) -> CreateOptions {
    let mut options = CreateOptions::default();
    options.wasm.set(name, value).unwrap();
    options
}

fn wasi_0_3_can_be_turned_off() {
    let off = options("WasmWasi03", "false");
    let import = r#"(component (import "wasi:clocks/types@0.3.0" (instance)) "#.to_owned();
    let importing = import + &run_export("wasi:cli/run@0.2.0", "", "(i32.const 0)") + ")";
    for module in [command03("0.3.0", 0), importing] {
        assert_eq!(run(&wat(&module), "").code, 0);
        let error = create_with(&wat(&module), "", &off).err().unwrap();
        assert_eq!(error.kind(), Kind::InvalidArgument);
        assert!(error.to_string().contains("WasmWasi03"), "{error}");
    }
    assert_eq!(create_with(&wat(&command(0)), "", &off).unwrap().start().end().code, 0);
}

fn proposals_can_be_turned_on() {
    let wide = wat(r#"(module (func (export "_start") (local i64 i64)
        (i64.add128 (i64.const 1) (i64.const 2) (i64.const 3) (i64.const 4)) (local.set 0) (local.set 1)))"#);
    let text = refusal(&wide, "");
    assert!(text.contains("wide"), "{text}");
    let on = options("WasmProposals", "wide-arithmetic");
    assert_eq!(create_with(&wide, "", &on).unwrap().start().end().code, 0);
    // Code of another configuration is not found under the same name.
    refusal(&wide, "");
    // All there are fit together.
    let error = options_error("WasmProposals", "warp");
    let all = error.rsplit("any of ").next().unwrap().trim_end_matches(" expected");
    assert_eq!(create_with(&wide, "", &options("WasmProposals", all)).unwrap().start().end().code, 0);
    assert_eq!(create_with(&wat(&command(0)), "", &options("WasmProposals", all)).unwrap().start().end().code, 0);
}

fn options_error(name: &str, value: &str) -> String {
    CreateOptions::default().wasm.set(name, value).unwrap_err().to_string()
}

fn annotations_are_checked() {
    let with = |name: &str, value: &str| {
        let more = format!(r#", "annotations": {{"io.containerd.hybrid.wasm.{name}": "{value}"}}"#);
        create_with(&wat(TRUE), &more, &CreateOptions::default())
    };
    for (name, value, expected) in
        [("network", "all", "HOST:PORT"), ("wasi-0.3", "true", "network"), ("proposals", "gc", "not known")]
    {
        let error = with(name, value).err().unwrap();
        assert_eq!(error.kind(), Kind::InvalidArgument);
        assert!(error.to_string().contains(expected) && error.to_string().contains(name), "{error}");
    }
    assert_eq!(with("network", "none").unwrap().start().end().code, 0);
}

fn text_and_threads_are_refused_by_name() {
    for text in ["(module)", "(component)"] {
        let text = refusal(text.as_bytes(), "");
        assert!(text.contains("WebAssembly text"), "{text}");
    }
    let threads = r#"(module (import "wasi" "thread-spawn" (func (param i32) (result i32))) (func (export "_start")))"#;
    let text = refusal(&wat(threads), "");
    assert!(text.contains("wasi-threads"), "{text}");
}

fn annotated(annotations: &[(&str, &str)]) -> String {
    let annotations: Vec<String> =
        annotations.iter().map(|(name, value)| format!(r#""io.containerd.hybrid.wasm.{name}": "{value}""#)).collect();
    format!(r#", "annotations": {{{}}}"#, annotations.join(", "))
}

fn memory_is_limited_to_the_containers() {
    const LIMIT: &str = r#", "resources": {"memory": {"limit": 33554432}}"#;
    let within = |module: &str| {
        let module = bundle(&wat(module));
        create_as(&module, "/app.wasm", "", ["", LIMIT], &CreateOptions::default()).unwrap().start().end()
    };
    // Grows by mebibytes until it can't, and exits with how many there are.
    let growing = r#"(module (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
        (memory (export "memory") 0)
        (func (export "_start")
            (loop (br_if 0 (i32.ne (memory.grow (i32.const 16)) (i32.const -1))))
            (call $exit (i32.shr_u (memory.size) (i32.const 4)))))"#;
    assert_eq!(within(growing).code, 27);
    // And a table with an element of eight bytes; half a mebibyte is left for it.
    let table = r#"(module (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
        (memory (export "memory") 432) (table $t 0 funcref)
        (func (export "_start")
            (if (i32.eq (table.grow $t (ref.null func) (i32.const 50000)) (i32.const -1)) (then (call $exit (i32.const 1))))
            (call $exit (table.grow $t (ref.null func) (i32.const 50000)))))"#;
    assert_eq!(within(table).code, 255);
    let large = within(r#"(module (memory 1024) (func (export "_start")))"#);
    assert_eq!(large.code, 1);
    assert!(large.stderr.contains("memory"), "{}", large.stderr);
    // Without a limit there is none.
    assert_eq!(run(&wat(r#"(module (memory 1024) (func (export "_start")))"#), "").code, 0);
}

/// Exits with the number of the error that making the folder `x` in the descriptor gives.
fn folder_maker(descriptor: u32) -> String {
    format!(
        r#"(module (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
            (import "wasi_snapshot_preview1" "path_create_directory" (func $make (param i32 i32 i32) (result i32)))
            (memory (export "memory") 1) (data (i32.const 0) "x")
            (func (export "_start") (call $exit (call $make (i32.const {descriptor}) (i32.const 0) (i32.const 1)))))"#
    )
}

fn folders_are_given_as_asked() {
    const BAD_DESCRIPTOR: u32 = 8;
    const MOUNT: &str = r#", "mounts": [{"destination": "/data", "type": "tmpfs", "source": "tmpfs"},
        {"destination": "/proc", "type": "proc", "source": "proc"}]"#;
    let make = |preopens: &str, descriptor: u32| {
        let bundle = bundle(&wat(&folder_maker(descriptor)));
        let more = annotated(&[("preopens", preopens)]) + MOUNT;
        let run = create_as(&bundle, "/app.wasm", "", [&more, ""], &CreateOptions::default()).unwrap();
        (run.start().end(), bundle.join("rootfs"))
    };
    let (ended, root) = make("rootfs", 3);
    assert!(ended.code == 0 && root.join("x").is_dir());
    assert_eq!(make("rootfs", 4).0.code, BAD_DESCRIPTOR);
    assert_eq!(make("none", 3).0.code, BAD_DESCRIPTOR);
    // /data, but not what is the kernel's.
    assert_eq!((make("mounts", 3).0.code, make("mounts", 4).0.code), (0, BAD_DESCRIPTOR));
    let (ended, root) = make("/data,/dev", 4);
    assert!(ended.code == 0 && root.join("dev/x").is_dir());
    let (ended, root) = make("/dev:ro", 3);
    assert!(![0, BAD_DESCRIPTOR].contains(&ended.code) && !root.join("dev/x").exists(), "{}", ended.code);
    let (ended, _) = make("/missing", 3);
    assert!(ended.code == 1 && ended.stderr.contains("/missing"), "{}", ended.stderr);
}

fn a_trap_leaves_a_core_dump() {
    let trap = wat(r#"(module (memory 1) (data (i32.const 8) "remember me") (func (export "_start") unreachable))"#);
    let bundle = bundle(&trap);
    let more = annotated(&[("coredump", "/dev")]);
    let run = create_as(&bundle, "/app.wasm", "", [&more, ""], &CreateOptions::default()).unwrap();
    let ended = run.start().end();
    assert_eq!(ended.code, 134);
    let name = ended.stderr.lines().find_map(|line| line.strip_prefix("core dump: ")).expect(&ended.stderr).to_owned();
    assert!(name.starts_with("core.app.wasm."), "{name}");
    let dump = std::fs::read(bundle.join("rootfs/dev").join(name)).unwrap();
    assert!(dump.starts_with(b"\0asm") && dump.windows(11).any(|bytes| bytes == b"remember me"));
    for part in ["unreachable", "wasm backtrace"] {
        assert!(ended.stderr.contains(part), "{}", ended.stderr);
    }
}

fn code_has_a_map_for_perf() {
    let module =
        wat(r#"(module (func $a_function_with_a_name) (func (export "_start") (call $a_function_with_a_name)))"#);
    let bundle = bundle(&module);
    std::fs::create_dir(bundle.join("rootfs/tmp")).unwrap();
    let more = annotated(&[("perf-map", "true")]);
    let run = create_as(&bundle, "/app.wasm", "", [&more, ""], &CreateOptions::default()).unwrap();
    assert_eq!(run.start().end().code, 0);
    let map = std::fs::read_to_string(bundle.join("rootfs/tmp/perf-1.map")).unwrap();
    assert!(map.contains("a_function_with_a_name"), "{map}");
}

fn figures_are_shown_while_it_computes() {
    use std::net::{TcpListener, TcpStream};
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let more = annotated(&[("metrics-address", &address.to_string())]);
    let run = create_with(&wat(LOOP), &more, &CreateOptions::default()).unwrap().start();
    let deadline = Instant::now() + Duration::from_secs(30);
    let text = loop {
        if let Ok(mut stream) = TcpStream::connect(address) {
            stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).unwrap();
            if text.contains("hybrid_wasm_instances 1\n") {
                break text;
            }
        }
        assert!(Instant::now() < deadline, "no figures");
        std::thread::sleep(Duration::from_millis(10));
    };
    for line in ["HTTP/1.1 200 OK\r\n", "hybrid_wasm_linear_memory_bytes 65536\n", "hybrid_wasm_traps_total 0\n"] {
        assert!(text.contains(line), "{text}");
    }
    // An address in use is said.
    let again = create_with(&wat(TRUE), &more, &CreateOptions::default()).unwrap().start().end();
    assert!(again.code == 1 && again.stderr.contains("in use"), "{}", again.stderr);
    run.container.init().signal(15).unwrap();
    assert_eq!(run.end().code, 143);
}

/// Waits until the file of /proc says so.
fn await_proc<T>(path: &str, mut found: impl FnMut(&str) -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let text = std::fs::read_to_string(path).unwrap();
        if let Some(value) = found(&text) {
            return value;
        }
        assert!(Instant::now() < deadline, "{path}: {text}");
        std::thread::yield_now();
    }
}

fn status_line<'a>(status: &'a str, name: &str) -> &'a str {
    status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim()
}

fn catches(status: &str, signal: u32) -> bool {
    u64::from_str_radix(status_line(status, "SigCgt:"), 16).unwrap() & 1 << (signal - 1) != 0
}

const SIGALRM: u32 = 14;

fn signals_end_the_first_process_of_a_namespace() {
    for signal in [1, 2, 3, 10, 12, 15, 9] {
        let run = create(&wat(LOOP), "", "").unwrap().start();
        let status = format!("/proc/{}/status", run.container.init().pid());
        // The last handler to be set.
        await_proc(&status, |status| catches(status, SIGALRM).then_some(()));
        run.container.init().signal(signal).unwrap();
        assert_eq!(run.end().code, 128 + signal as u32);
    }
}

fn a_settled_guest_takes_little_memory() {
    let run = create(&wat(LOOP), "", "").unwrap().start();
    let pid = run.container.init().pid();
    let status = format!("/proc/{pid}/status");
    await_proc(&status, |status| catches(status, SIGALRM).then_some(()));
    assert_eq!(await_proc(&status, |status| Some(status_line(status, "Threads:").to_owned())), "1");
    let kilobytes = |text: &str, name| status_line(text, name).trim_end_matches(" kB").trim().parse::<u32>().unwrap();
    // Pages of the binary that a guest which only computes doesn't need; they go after a while.
    let rollup = await_proc(&format!("/proc/{pid}/smaps_rollup"), |rollup| {
        (kilobytes(rollup, "Rss:") < 1000).then(|| rollup.to_owned())
    });
    assert!(kilobytes(&rollup, "Anonymous:") < 300, "{rollup}");
    run.container.init().signal(9).unwrap();
    assert_eq!(run.end().code, 137);
}

fn too_little_address_space_is_told() {
    let module = wat(r#"(module (memory (export "memory") 1) (func (export "_start")))"#);
    let limit = r#", "rlimits": [{"type": "RLIMIT_AS", "hard": 1073741824, "soft": 1073741824}]"#;
    let ended = create(&module, "", limit).unwrap().start().end();
    assert_ne!(ended.code, 0);
    assert!(ended.stderr.contains("RLIMIT_AS"), "{}", ended.stderr);
}

fn entries() -> Vec<PathBuf> {
    let mut entries: Vec<PathBuf> =
        std::fs::read_dir(folder("cache")).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    entries
}

/// The entry that a first run of `module` makes.
fn new_entry(module: &[u8]) -> PathBuf {
    let before = entries();
    run(module, "");
    let new: Vec<PathBuf> = entries().into_iter().filter(|path| !before.contains(path)).collect();
    assert_eq!(new.len(), 1, "{new:?}");
    new.into_iter().next().unwrap()
}

fn the_second_start_finds_the_code() {
    let module = wat(&exit(51));
    let entry = new_entry(&module);
    let mut files: Vec<_> = std::fs::read_dir(&entry).unwrap().map(|file| file.unwrap().file_name()).collect();
    files.sort();
    assert_eq!(files, ["about.json", "code"]);
    assert_eq!(folder("cache").metadata().unwrap().mode() & 0o7777, 0o700);
    let (inode, count) = (entry.join("code").metadata().unwrap().ino(), entries().len());
    assert_eq!(run(&module, "").code, 51);
    assert_eq!((entry.join("code").metadata().unwrap().ino(), entries().len()), (inode, count));
    // What is refused leaves nothing.
    refusal(&wat(r#"(module (import "a" "b" (func)) (func (export "_start")))"#), "");
    assert_eq!(entries().len(), count);
}

fn concurrent_starts_compile_once() {
    let module = wat(&exit(52));
    let before = entries().len();
    std::thread::scope(|scope| {
        let starts: Vec<_> = (0..8).map(|_| scope.spawn(|| run(&module, "").code)).collect();
        for start in starts {
            assert_eq!(start.join().unwrap(), 52);
        }
        // The same for one that is refused.
        let module = wat(r#"(module (import "c" "d" (func)) (func (export "_start")))"#);
        let starts: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn({
                    let module = module.clone();
                    move || refusal(&module, "")
                })
            })
            .collect();
        for start in starts {
            assert!(start.join().unwrap().contains("c::d"));
        }
    });
    assert_eq!(entries().len(), before + 1);
}

fn damaged_or_foreign_entries_are_not_used() {
    let module = wat(&exit(53));
    let entry = new_entry(&module);
    let code = entry.join("code");
    let damages: [(&str, &dyn Fn()); 7] = [
        ("empty", &|| std::fs::write(&code, "").unwrap()),
        ("cut", &|| File::options().write(true).open(&code).unwrap().set_len(5000).unwrap()),
        ("owner", &|| chown(&code, Some(1000), None).unwrap()),
        ("mode", &|| std::fs::set_permissions(&code, Permissions::from_mode(0o666)).unwrap()),
        ("facts", &|| std::fs::write(entry.join("about.json"), "{").unwrap()),
        ("no code", &|| std::fs::remove_file(&code).unwrap()),
        ("gone", &|| std::fs::remove_dir_all(&entry).unwrap()),
    ];
    for (name, damage) in damages {
        damage();
        assert_eq!(run(&module, "").code, 53, "{name}");
        let metadata = code.metadata().unwrap();
        assert_eq!((metadata.uid(), metadata.mode() & 0o7777), (0, 0o644), "{name}");
    }
}

/// While one container's module is rewritten all the time, its code must never be found under the key of another's bytes.
fn a_module_that_changes_poisons_nothing() {
    let (one, other) = (wat(&exit(61)), wat(&exit(62)));
    assert_eq!(one.len(), other.len());
    let bundle = bundle(&one);
    let file = File::options().write(true).open(bundle.join("rootfs/app.wasm")).unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            use std::os::unix::fs::FileExt;
            while !done.load(Ordering::Relaxed) {
                file.write_all_at(&other, 0).unwrap();
                file.write_all_at(&one, 0).unwrap();
            }
        });
        for _ in 0..20 {
            for entry in entries() {
                std::fs::remove_dir_all(entry).unwrap();
            }
            // Either of the two, or a mixture of both that is refused: all the same here.
            if let Ok(run) = create_in(&bundle, "/app.wasm", "") {
                run.start().end();
            }
            let found = (run(&one, "").code, run(&other, "").code);
            if found != (61, 62) {
                done.store(true, Ordering::Relaxed);
                panic!("{found:?}");
            }
        }
        done.store(true, Ordering::Relaxed);
    });
}

fn the_precompiler_is_confined() {
    // It reads its module from a pipe that stays open, so that it can be looked at.
    let root = folder("root");
    std::fs::create_dir_all(&root).unwrap();
    let (input, mut held) = std::io::pipe().unwrap();
    let mut child = Command::new("/proc/self/exe")
        .arg0("hybrid-precompile")
        .current_dir(&root)
        .stdin(input)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = child.id();
    let path = format!("/proc/{pid}/status");
    await_proc(&path, |status| (status_line(status, "NoNewPrivs:") == "1").then_some(()));
    // Read anew: the lines of one reading need not be of one moment.
    let status = std::fs::read_to_string(path).unwrap();
    assert_eq!(std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap(), "1000\n");
    for ids in ["Uid:", "Gid:"] {
        assert_eq!(status_line(&status, ids), "65534\t65534\t65534\t65534");
    }
    assert_eq!(status_line(&status, "Groups:"), "");
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
        assert_eq!(status_line(&status, set), "0000000000000000", "{set}");
    }
    assert_eq!(std::fs::read_link(format!("/proc/{pid}/root")).unwrap(), root);
    for namespace in ["net", "ipc", "uts", "mnt"] {
        let of = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/{namespace}")).unwrap();
        assert_ne!(of(&pid.to_string()), of("self"), "{namespace}");
    }
    held.write_all(b"\0asm").unwrap();
    drop(held);
    assert_eq!(child.wait().unwrap().code(), Some(1));
    let mut text = String::new();
    child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
    assert!(text.contains("not a valid module"), "{text}");
}
