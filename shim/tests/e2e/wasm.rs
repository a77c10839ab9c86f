//! WebAssembly: how it is found, what it may do, how it ends. What it has in common with Linux is tested there.
use crate::harness::{Case, Kind, Run, Test, eventually};
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::SystemTime;

pub const CASES: &[Case] = &[
    Case::new("hello", |test| {
        let output = test.run(&["hello"]).done()?;
        ensure!(output.stdout == "hello from WebAssembly\n", "{output}");
        Ok(())
    })
    .kinds(Kind::WASM),
    Case::new("smallest_module", |test| test.run_image("wasm-cases", &["/true.wasm"]).done().map(drop)).kinds(CASE),
    Case::new("function_named", |test| {
        let output = test.run_image("wasm-cases", &["/function.wasm#greet"]).done()?;
        ensure!(output.stdout == "greet\n", "{output}");
        let output = test.run_image("wasm-cases", &["/function.wasm"]).done()?;
        ensure!(output.stdout == "start\n", "{output}");
        Ok(())
    })
    .kinds(CASE),
    Case::new("trap_is_134_with_a_message", |test| {
        let output = test.run_image("wasm-cases", &["/trap.wasm"]).output()?.exits(134)?;
        output.refused(&["unreachable", "give_up"]).map(drop)
    })
    .kinds(CASE),
    Case::new("trap_of_a_compiled_program", |test| {
        test.run(&["trap"]).output()?.exits(134)?.refused(&["unreachable"]).map(drop)
    })
    .kinds(Kind::WASM),
    Case::new("configuration_comes_from_annotations", |test| {
        let annotation = "io.containerd.hybrid.wasm.config.colour=green";
        for (number, values) in [["colour", "green"].as_slice(), &["shape"]].into_iter().enumerate() {
            let run = test.run_image("wasm-cases", &[&["/config.wasm"], values].concat());
            run.id(&test.other(&number.to_string())).flags(&["--annotation", annotation]).done()?;
        }
        Ok(())
    })
    .kinds(CASE),
    Case::new("computing_ends_by_signal", |test| {
        for (signal, code) in [("TERM", 143), ("INT", 130), ("KILL", 137)] {
            let running = test.run_image("wasm-cases", &["/loop.wasm"]).id(&test.other(signal)).spawn()?;
            running.wait_for("ready")?;
            test.kill(&test.other(signal), signal)?;
            running.finish()?.exits(code)?;
        }
        Ok(())
    })
    .kinds(CASE),
    Case::new("reading_ends_by_signal", |test| {
        for (signal, code) in [("TERM", 143), ("KILL", 137)] {
            let running = test.run(&["wait-stdin"]).id(&test.other(signal)).spawn()?;
            running.wait_for("ready")?;
            test.kill(&test.other(signal), signal)?;
            // stdin is still open: the signal must not wait for it.
            ended_by(running, code)?;
        }
        Ok(())
    })
    .kinds(Kind::WASM),
    Case::new("isolated_as_a_program_is", |test| {
        let status = status_of(test, test.run(&["spin"]).flags(&["--seccomp"]))?;
        // The last of NSpid is the pid in the container's own namespace.
        ensure!(status.ends_with_of("NSpid", "1")?, "{status:?}");
        status.has("Uid", "0 0 0 0")?;
        status.has("NoNewPrivs", "1")?;
        status.has("Seccomp", "2")?;
        for set in ["CapPrm", "CapEff", "CapBnd"] {
            // What ctr gives by default.
            status.has(set, "00000000a80425fb")?;
        }
        status.has("CapAmb", "0000000000000000")
    })
    .kinds(Kind::WASM),
    Case::new("user_without_capabilities", |test| {
        let user = json!({"uid": 1000, "gid": 1001, "additionalGids": [2000]});
        let status = status_of(test, test.spec(&["spin"])?.set("/process/user", user)?.run()?)?;
        status.has("Uid", "1000 1000 1000 1000")?;
        status.has("Gid", "1001 1001 1001 1001")?;
        status.has("Groups", "2000")?;
        status.has("CapPrm", "0000000000000000")?;
        status.has("CapEff", "0000000000000000")
    })
    .kinds(Kind::WASM),
    Case::new("namespaces_of_its_own", |test| {
        let running = test.run(&["spin"]).spawn()?;
        running.wait_for("ready")?;
        let pid = test.pid(&test.id)?;
        for kind in ["ipc", "mnt", "net", "pid", "uts"] {
            let link = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{kind}")).context("reading a namespace");
            ensure!(link(&pid.to_string())? != link("self")?, "the {kind} namespace is ours");
        }
        test.kill(&test.id, "KILL")?;
        running.finish()?.exits(137).map(drop)
    })
    .kinds(Kind::WASM),
    Case::new("nothing_of_the_kernel_is_written", |test| {
        // The first is the runner's own memory: to write it is to leave the sandbox.
        let paths = ["/proc/self/mem", "/proc/self/comm", "/proc/1/oom_score_adj", "/sys/kernel/mm/ksm/run"];
        for (number, path) in paths.iter().enumerate() {
            let output = test.run(&["write", path, "0"]).id(&test.other(&number.to_string())).output()?;
            ensure!(output.code == 1, "a guest writes {path}: {output}");
        }
        Ok(())
    })
    .kinds(Kind::WASM),
    Case::new("no_way_out_through_proc", |test| {
        // Magic links lead to what a path could not reach.
        for (number, path) in ["/proc/1/root/etc/passwd", "/proc/1/exe", "/proc/self/fd/3"].iter().enumerate() {
            let output = test.run(&["cat", path]).id(&test.other(&number.to_string())).output()?;
            ensure!(output.code == 1 && output.stdout.is_empty(), "a guest reads {path}: {output}");
        }
        Ok(())
    })
    .kinds(Kind::WASM),
    Case::new("permissions_of_files_hold", |test| {
        let spec = test.spec(&["write", "/etc/passwd", "x"])?;
        let spec = spec.set("/process/user", json!({"uid": 1000, "gid": 1000}))?;
        spec.run()?.output()?.refused(&["/etc/passwd"]).map(drop)
    })
    .kinds(Kind::WASM),
    Case::new("nothing_above_the_root", |test| {
        let output = test.run(&["cat", "/../../../../proc/1/status"]).output()?;
        // Refused or resolved inside: never the status of the host's process 1.
        ensure!(output.code != 0 || !output.stdout.contains("Name:\tbash"), "{output}");
        Ok(())
    })
    .kinds(Kind::WASM),
    Case::new("masked_paths", |test| {
        let spec = test.spec(&["cat", "/etc/passwd"])?.set("/linux/maskedPaths", json!(["/etc/passwd"]))?;
        let output = spec.run()?.output()?;
        ensure!(output.stdout.is_empty(), "{output}");
        Ok(())
    })
    .kinds(Kind::WASM),
    Case::new("precompiled_code_is_kept", |test| {
        test.run(&["hello"]).done()?;
        let kept = precompiled(test)?;
        ensure!(!kept.is_empty(), "nothing was kept");
        test.run(&["hello"]).id(&test.other("again")).done()?;
        let now = precompiled(test)?;
        ensure!(kept.iter().all(|entry| now.contains(entry)), "{kept:?} became {now:?}");
        let mode = fs::metadata(test.containerd.wasm_cache()).context("looking at the cache")?.permissions().mode();
        ensure!(mode & 0o777 == 0o700, "others may enter the cache: {mode:o}");
        Ok(())
    })
    .kinds(Kind::WASM),
    Case::new("annotations_name_the_executor", |test| {
        let names = [
            "run.oci.handler=wasm",
            "module.wasm.image/variant=compat",
            "module.wasm.image/variant=compat-smart",
            "io.containerd.hybrid.executor=wasm",
        ];
        for (number, annotation) in names.iter().enumerate() {
            let id = test.other(&number.to_string());
            test.run(&["hello"]).id(&id).flags(&["--annotation", annotation]).done()?;
            logged(test, &id, "wasm")?;
        }
        Ok(())
    })
    .kinds(Kind::WASM),
    Case::new("native_by_annotation", |test| {
        test.run(&["hello"]).flags(&["--annotation", "io.containerd.hybrid.executor=native"]).done()?;
        logged(test, &test.id, "native")
    })
    .hybrid_only(),
    Case::new("native_by_annotation_is_not_overruled", |test| {
        let annotation = "io.containerd.hybrid.executor=native";
        // The file isn't executable, and the kernel is what is asked to run it.
        test.run(&["hello"]).flags(&["--annotation", annotation]).output()?.refused(&["permission denied"]).map(drop)
    })
    .kinds(Kind::WASM),
    Case::new("sandbox_is_native", |test| {
        let annotation = "io.kubernetes.cri.container-type=sandbox";
        test.run(&["hello"]).flags(&["--annotation", annotation]).output()?.refused(&["permission denied"]).map(drop)
    })
    .kinds(Kind::WASM),
    Case::new("magic_bytes_decide", |test| {
        test.run(&["hello"]).done()?;
        logged(test, &test.id, "wasm")
    })
    .kinds(Kind::WASM),
    Case::new("a_program_is_no_module", |test| {
        let annotation = "io.containerd.hybrid.executor=wasm";
        test.run(&["hello"]).flags(&["--annotation", annotation]).output()?.refused(&[&test.id]).map(drop)
    })
    .hybrid_only(),
];

/// The tests on the small cases, which are core modules.
const CASE: &[Kind] = &[Kind::Core];

/// The files of precompiled code, and when each was written.
fn precompiled(test: &Test) -> Result<Vec<(PathBuf, SystemTime)>> {
    let cache = test.containerd.wasm_cache();
    let mut files = Vec::new();
    for entry in fs::read_dir(&cache).with_context(|| format!("reading {}", cache.display()))? {
        let code = entry.context("reading the cache")?.path().join("code");
        // Other tests compile meanwhile; what is being made has not got its name.
        if let Ok(written) = fs::metadata(&code).and_then(|metadata| metadata.modified()) {
            files.push((code, written));
        }
    }
    Ok(files)
}

/// The lines of /proc/PID/status.
#[derive(Debug)]
struct Status(String);

impl Status {
    /// The values of a line, separated by single spaces.
    fn get(&self, name: &str) -> Result<String> {
        let line = self.0.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let line = line.with_context(|| format!("no {name} in {}", self.0))?;
        Ok(line.split_whitespace().collect::<Vec<_>>().join(" "))
    }

    fn has(&self, name: &str, value: &str) -> Result<()> {
        let actual = self.get(name)?;
        ensure!(actual == value, "{name} is {actual}, not {value}");
        Ok(())
    }

    fn ends_with_of(&self, name: &str, value: &str) -> Result<bool> {
        Ok(self.get(name)?.split(' ').next_back() == Some(value))
    }
}

/// Runs a guest that prints "ready", and returns what the kernel says of its process.
fn status_of(test: &Test, run: Run) -> Result<Status> {
    let running = run.spawn()?;
    running.wait_for("ready")?;
    let pid = test.pid(&test.id)?;
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("reading the status of init")?;
    test.kill(&test.id, "KILL")?;
    running.finish()?.exits(137)?;
    Ok(Status(status))
}

/// Ends `ctr` without closing stdin before.
fn ended_by(mut running: crate::harness::command::Running, code: i32) -> Result<()> {
    running.ended()?;
    running.finish()?.exits(code).map(drop)
}

/// Waits until the log has a line about the container that names the executor. The line goes through a fifo and
/// containerd, which announces nothing of it.
fn logged(test: &Test, id: &str, executor: &str) -> Result<()> {
    eventually(&format!("a line of the log that says that {id} runs as {executor} and why"), || {
        let log = test.containerd.log()?;
        let mut lines = log.lines().filter(|line| line.contains(id) && line.to_lowercase().contains("executor"));
        Ok(lines.any(|line| line.to_lowercase().contains(executor)).then_some(()))
    })
}
