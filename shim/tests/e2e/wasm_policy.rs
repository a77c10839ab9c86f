//! What the options and annotations of WebAssembly (docs/wasm.md) do to a guest.
use crate::harness::command::Output;
use crate::harness::{Case, Kind, Test};
use crate::options::config_file;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::fs;

pub const CASES: &[Case] = &[
    Case::new("folders", folders).kinds(Kind::WASM),
    Case::new("a_folder_that_is_not_there", |test| {
        let output = probe(test, "one", json!({PREOPENS: "/nowhere"}), &["hello"])?;
        output.exits(1)?.refused(&["/nowhere"]).map(drop)
    })
    .kinds(Kind::WASM),
    Case::new("unknown_annotations_are_refused", |test| {
        let output = probe(test, "one", json!({"io.containerd.hybrid.wasm.preopen": "none"}), &["hello"])?;
        output.refused(&["io.containerd.hybrid.wasm.preopen"])?;
        let output = probe(test, "two", json!({PREOPENS: "nothing"}), &["hello"])?;
        output.refused(&[PREOPENS, "nothing"]).map(drop)
    })
    .kinds(Kind::WASM),
    Case::new("an_annotation_goes_before_an_option", |test| {
        let config = config_file(test, "WasmPreopens = \"none\"\n")?;
        let run = |id: &str| {
            let run = test.run(&["cat", "/etc/passwd"]).id(&test.other(id));
            run.flags(&["--runtime-config-path", &config])
        };
        run("option").output()?.exits(1)?;
        run("annotation").flags(&["--annotation", &format!("{PREOPENS}=rootfs")]).done().map(drop)
    })
    .kinds(Kind::WASM),
    Case::new("proposals", |test| {
        test.run_image("wasm-cases", &["/wide.wasm"]).output()?.refused(&["wide"])?;
        let config = config_file(test, "WasmProposals = \"wide-arithmetic\"\n")?;
        let run = test.run_image("wasm-cases", &["/wide.wasm"]).id(&test.other("on"));
        run.flags(&["--runtime-config-path", &config]).done().map(drop)
    })
    .kinds(CASE),
    Case::new("wasi_0_3_turned_off", |test| {
        let config = config_file(test, "WasmWasi03 = false\n")?;
        for (number, module) in ["/handler.wasm", "/socket.wasm"].iter().enumerate() {
            let run = test.run_image("wasm-cases", &[module]).id(&test.other(&number.to_string()));
            run.flags(&["--runtime-config-path", &config]).output()?.refused(&["WasmWasi03", module])?;
        }
        let run = test.run_image("wasm-cases", &["/true.wasm"]).id(&test.other("older"));
        run.flags(&["--runtime-config-path", &config]).done().map(drop)
    })
    .kinds(CASE),
    Case::new("a_reactor_is_initialized", |test| {
        let output = test.run_image("wasm-cases", &["/reactor.wasm#greet"]).done()?;
        ensure!(output.stdout == "made\n", "{output}");
        Ok(())
    })
    .kinds(CASE),
    Case::new("core_dumps", |test| {
        let cores = folder(test, &[])?;
        let spec = test.spec(&["trap"])?.mount(bind(&cores, "/cores", "rw"))?;
        let spec = spec.set("/annotations", json!({"io.containerd.hybrid.wasm.coredump": "/cores"}))?;
        let output = spec.run()?.output()?.exits(134)?;
        let dumps: Vec<_> = fs::read_dir(&cores)?.collect::<Result<_, _>>()?;
        ensure!(dumps.len() == 1, "{dumps:?}");
        let name = dumps[0].file_name().to_string_lossy().into_owned();
        ensure!(name.starts_with("core.probe.wasm.") && output.stderr.contains(&name), "{name}: {output}");
        ensure!(fs::read(dumps[0].path())?.starts_with(b"\0asm"), "{name} is no core dump");
        Ok(())
    })
    .kinds(Kind::WASM),
    Case::new("maps_for_perf", |test| {
        let maps = folder(test, &[])?;
        let spec = test.spec(&["spin"])?.mount(bind(&maps, "/tmp", "rw"))?;
        let running =
            spec.set("/annotations", json!({"io.containerd.hybrid.wasm.perf-map": "true"}))?.run()?.spawn()?;
        running.wait_for("ready")?;
        let map = fs::read_to_string(format!("{maps}/perf-1.map")).context("reading the map of process 1")?;
        ensure!(map.lines().any(|line| line.contains("_start")), "{map}");
        test.kill(&test.id, "KILL")?;
        running.finish()?.exits(137).map(drop)
    })
    .kinds(Kind::WASM),
];

const CASE: &[Kind] = &[Kind::Core];

const PREOPENS: &str = "io.containerd.hybrid.wasm.preopens";

/// Every policy for folders: what can be read, and written, by which name.
fn folders(test: &Test) -> Result<()> {
    let shared = folder(test, &[("file", "shared")])?;
    let single = format!("{shared}/file");
    let cases: [(&str, &[&str], bool); 18] = [
        ("rootfs", &["cat", "/etc/passwd"], true),
        ("rootfs", &["cat", "/shared/file"], true),
        ("rootfs", &["write", "/shared/new", "x"], true),
        ("mounts", &["cat", "/etc/passwd"], false),
        ("mounts", &["cat", "/shared/file"], true),
        ("mounts", &["write", "/shared/new", "x"], true),
        ("mounts", &["cat", "/proc/self/status"], false),
        ("rootfs", &["cat", "/single/file"], true),
        ("mounts", &["cat", "/single/file"], false),
        ("rootfs", &["cat", "/dev/null"], true),
        ("mounts", &["cat", "/dev/null"], false),
        ("none", &["cat", "/etc/passwd"], false),
        ("none", &["hello"], true),
        ("/etc", &["cat", "/etc/passwd"], true),
        ("/etc", &["cat", "/shared/file"], false),
        ("/etc::/conf /shared:ro", &["cat", "/conf/passwd"], true),
        ("/etc::/conf /shared:ro", &["cat", "/shared/file"], true),
        ("/etc::/conf /shared:ro", &["write", "/shared/new", "x"], false),
    ];
    for (number, (policy, arguments, works)) in cases.into_iter().enumerate() {
        let spec = test.spec(arguments)?.mount(bind(&shared, "/shared", "rw"))?;
        // A file by itself is no folder.
        let spec = spec.mount(bind(&single, "/single/file", "ro"))?;
        let run = spec.set("/annotations", json!({PREOPENS: policy}))?.run()?;
        let output = run.id(&test.other(&number.to_string())).output()?;
        ensure!((output.code == 0) == works, "{policy}: {output}");
    }
    Ok(())
}

/// Runs the probe with these annotations.
fn probe(test: &Test, id: &str, annotations: Value, arguments: &[&str]) -> Result<Output> {
    test.spec(arguments)?.set("/annotations", annotations)?.run()?.id(&test.other(id)).output()
}

/// A folder of the host's with these files.
fn folder(test: &Test, files: &[(&str, &str)]) -> Result<String> {
    let path = test.containerd.fresh_path("folder");
    fs::create_dir(&path).with_context(|| format!("making {}", path.display()))?;
    for (name, text) in files {
        fs::write(path.join(name), text)?;
    }
    Ok(path.display().to_string())
}

fn bind(source: &str, destination: &str, access: &str) -> Value {
    json!({"type": "bind", "source": source, "destination": destination, "options": ["rbind", access]})
}
