//! Exec: what a further process of a container is, and what it has in common with init.
use crate::harness::leaks::Process;
use crate::harness::spec::Spec;
use crate::harness::{Case, Kind, Test};
use anyhow::{Context, Result, anyhow, ensure};
use serde_json::{Value, json};
use std::fs;

pub const CASES: &[Case] = &[
    Case::new("by_ctr", by_ctr).all(),
    Case::new("twenty_at_once", twenty).all(),
    Case::new("namespaces_and_cgroup_of_init", same_place).all(),
    Case::new("mounts_of_init", |test| {
        let task = test.task(&["pause"])?;
        // A mount of the container's own: /run is memory.
        task.exec("write", &["write", "/run/file", "text"])?.run()?.exits(0)?;
        let output = task.exec("read", &["cat", "/run/file"])?.run()?.exits(0)?;
        ensure!(output.stdout == "text", "{output}");
        let seen = fs::read_to_string(format!("/proc/{}/root/run/file", task.pid)).context("looking as init")?;
        ensure!(seen == "text", "init sees {seen:?}");
        task.end()
    })
    .all(),
    Case::new("environment", |test| {
        let task = test.task(&["pause"])?;
        let output = task.exec("one", &["env"])?.set("/env", json!(["NAME=a value", "EMPTY="]))?.run()?.exits(0)?;
        ensure!(output.lines().contains(&"NAME=a value") && output.lines().contains(&"EMPTY="), "{output}");
        // Its own, not init's too.
        ensure!(!output.stdout.contains("PATH="), "{output}");
        task.end()
    }),
    Case::new("environment_of_a_guest", |test| {
        let task = test.task(&["pause"])?;
        let output = task.exec("one", &["env"])?.set("/env", json!(["NAME=a value"]))?.run()?.exits(0)?;
        // Not HOME beside, which a program gets.
        ensure!(output.lines() == ["NAME=a value"], "{output}");
        task.end()
    })
    .kinds(Kind::WASM),
    Case::new("arguments", |test| {
        let task = test.task(&["pause"])?;
        let output = task.exec("one", &["args", "a b", "", "ü"])?.run()?.exits(0)?;
        let program = test.kind.program();
        ensure!(output.lines() == [program, "args", "a b", "", "ü"], "{output}");
        task.end()
    })
    .all(),
    Case::new("cwd", |test| probe(test, &["pwd"], "/cwd", json!("/data"), "/data\n")),
    Case::new("program_found_in_path", |test| {
        let task = test.task(&["pause"])?;
        let exec = task.exec_program("one", &["probe", "hello"])?.set("/env", json!(["PATH=/nowhere:/bin"]))?;
        let output = exec.run()?.exits(0)?;
        ensure!(output.stdout == "hello from Linux\n", "{output}");
        task.end()
    }),
    Case::new("program_relative_to_cwd", |test| {
        let task = test.task(&["pause"])?;
        task.exec_program("one", &["./probe", "hello"])?.set("/cwd", json!("/bin"))?.run()?.exits(0)?;
        task.end()
    }),
    Case::new("user_and_groups", |test| {
        let user = json!({"uid": 1000, "gid": 1001, "additionalGids": [2000, 3000]});
        let lines = ids(test, "/user", user)?;
        ensure!(lines.has("Uid:\t1000\t1000\t1000\t1000") && lines.has("Gid:\t1001\t1001\t1001\t1001"), "{lines:?}");
        ensure!(lines.has("Groups:\t2000 3000 "), "{lines:?}");
        // Those of root by default are gone with root.
        ensure!(lines.has("CapEff:\t0000000000000000") && lines.has("CapPrm:\t0000000000000000"), "{lines:?}");
        Ok(())
    }),
    Case::new("capabilities", |test| {
        let lines = ids(test, "/capabilities", sets(&["CAP_CHOWN", "CAP_KILL"]))?;
        for set in ["CapPrm", "CapEff", "CapBnd"] {
            ensure!(lines.has(&format!("{set}:\t0000000000000021")), "{lines:?}");
        }
        Ok(())
    }),
    // More than init has, as `docker exec --privileged` asks for.
    Case::new("capabilities_beyond_those_of_init", |test| {
        let lines = ids(test, "/capabilities", sets(&["CAP_SYS_ADMIN"]))?;
        ensure!(lines.has("CapEff:\t0000000000200000"), "{lines:?}");
        Ok(())
    }),
    Case::new("no_new_privileges", |test| {
        ensure!(ids(test, "/noNewPrivileges", json!(true))?.has("NoNewPrivs:\t1"), "not set");
        ensure!(ids(test, "/noNewPrivileges", json!(false))?.has("NoNewPrivs:\t0"), "set");
        Ok(())
    }),
    Case::new("signals_are_default", |test| {
        let lines = ids(test, "/cwd", json!("/"))?;
        let mask = |name: &str| {
            let line = lines.0.iter().find_map(|line| line.strip_prefix(name)).with_context(|| format!("no {name}"))?;
            u64::from_str_radix(line.trim(), 16).with_context(|| line.to_owned())
        };
        // Signals 1 to 31; what libc and Go keep for themselves comes after.
        ensure!(mask("SigIgn:")? & 0x7fff_ffff == 0 && mask("SigBlk:")? == 0, "{lines:?}");
        Ok(())
    }),
    Case::new("rlimits", |test| {
        let limits = json!([{"type": "RLIMIT_NPROC", "soft": 333, "hard": 444}]);
        probe(test, &["ulimit", "nproc"], "/rlimits", limits, "333 444\n")
    }),
    Case::new("rlimit_of_descriptors", |test| {
        let limits = json!([{"type": "RLIMIT_NOFILE", "soft": 333, "hard": 444}]);
        probe(test, &["ulimit", "nofile"], "/rlimits", limits, "333 444\n")
    })
    .hybrid_only(), // Go's runtime raises runc's own meanwhile
    Case::new("umask_by_default", |test| probe(test, &["umask"], "/cwd", json!("/"), "0022\n")),
    Case::new("umask_of_the_user", |test| {
        let task = test.task_of(test.spec(&["pause"])?.set("/process/user/umask", json!(0o077))?)?;
        let output = task.exec("one", &["umask"])?.run()?.exits(0)?;
        ensure!(output.stdout == "0077\n", "{output}");
        task.end()
    })
    .hybrid_only(), // runc since 1.2
    Case::new("oom_score", |test| {
        let spec = test.spec(&["pause"])?.set("/process/oomScoreAdj", json!(321))?;
        let task = test.task_of(spec)?;
        let output = task.exec("one", &["cat", "/proc/self/oom_score_adj"])?.run()?.exits(0)?;
        ensure!(output.stdout == "321\n", "{output}");
        task.end()
    }),
    Case::new("seccomp_filters", |test| {
        let profile = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["chown", "fchownat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}],
        });
        let task = test.task_of(test.spec(&["pause"])?.set("/linux/seccomp", profile)?)?;
        let output = task.exec("one", &["try", "chown", "/tmp"])?.run()?.exits(0)?;
        ensure!(output.stdout == "No space left on device\n", "{output}");
        task.end()
    }),
    Case::new("devices_of_the_container_only", |test| {
        let device = json!([{"path": "/dev/other", "type": "b", "major": 7, "minor": 0}]);
        let task = test.task_of(test.spec(&["pause"])?.set("/linux/devices", device)?)?;
        let output = task.exec("one", &["try", "open", "/dev/other"])?.run()?.exits(0)?;
        ensure!(output.stdout == "Operation not permitted\n", "{output}");
        task.end()
    }),
    Case::new("only_three_descriptors", |test| {
        let task = test.task(&["pause"])?;
        let output = task.exec("one", &["fds"])?.run()?.exits(0)?;
        ensure!(output.lines().len() == 3, "{output}");
        task.end()
    }),
    Case::new("in_a_shared_pid_namespace", |test| {
        let task = test.task_of(shared_pids(test, &["pause"])?)?;
        let mut exec = task.exec("one", &["wait-stdin"])?;
        let pid = exec.spawn()?;
        exec.io()?.stdout.wait_for("ready")?;
        let process = Process::of(pid).context("no such process here: it is not in the host's pid namespace")?;
        ensure!(process.mentions(&test.id), "not in the container's cgroup");
        exec.end_stdin()?;
        exec.finish()?.exits(0)?;
        task.end()
    }),
    Case::new("mounts_of_a_guest", guest_mounts).kinds(Kind::WASM),
    Case::new("isolated_as_init_is", |test| {
        let task = test.task(&["pause"])?;
        let mut exec = task.exec("one", &["wait-stdin"])?.set("/user", json!({"uid": 1000, "gid": 1001}))?;
        let pid = exec.spawn()?;
        exec.io()?.stdout.wait_for("ready")?;
        let status = fs::read_to_string(format!("/proc/{pid}/status")).context("reading its status")?;
        for line in ["Uid:\t1000\t1000\t1000\t1000", "CapEff:\t0000000000000000", "NoNewPrivs:\t1"] {
            ensure!(status.lines().any(|other| other == line), "no {line:?} in {status}");
        }
        exec.end_stdin()?;
        exec.finish()?.exits(0)?;
        task.end()
    })
    .kinds(Kind::WASM),
    Case::new("a_program_in_a_guest_s_container", native).kinds(&[Kind::Core]),
    Case::new("modules_broken_or_missing", broken_modules).kinds(&[Kind::Core]),
];

/// The lines `probe id` prints.
#[derive(Debug)]
struct Lines(Vec<String>);

impl Lines {
    fn has(&self, line: &str) -> bool {
        self.0.iter().any(|other| other == line)
    }
}

/// Runs `probe id` with one value of the process changed.
fn ids(test: &Test, pointer: &str, value: Value) -> Result<Lines> {
    let task = test.task(&["pause"])?;
    let output = task.exec("one", &["id"])?.set(pointer, value)?.run()?.exits(0)?;
    task.end()?;
    Ok(Lines(output.lines().into_iter().map(str::to_owned).collect()))
}

/// Runs the probe with one value of the process changed; fails unless it prints `expected`.
fn probe(test: &Test, arguments: &[&str], pointer: &str, value: Value, expected: &str) -> Result<()> {
    let task = test.task(&["pause"])?;
    let output = task.exec("one", arguments)?.set(pointer, value)?.run()?.exits(0)?;
    ensure!(output.stdout == expected, "{output}");
    task.end()
}

/// The same capabilities in all sets that root needs.
fn sets(names: &[&str]) -> Value {
    json!({"bounding": names, "effective": names, "permitted": names})
}

/// A spec whose container shares the pid namespace of the test.
pub fn shared_pids<'a>(test: &Test<'a>, arguments: &[&str]) -> Result<Spec<'a>> {
    let mut spec = test.spec(arguments)?;
    for namespace in spec.value["linux"]["namespaces"].as_array_mut().context("namespaces")? {
        if namespace["type"] == "pid" {
            namespace["path"] = json!("/proc/1/ns/pid");
        }
    }
    Ok(spec)
}

fn by_ctr(test: &Test) -> Result<()> {
    test.run(&["spin"]).flags(&["--null-io"]).detach()?;
    let exec = |id: &str, arguments: &[&str]| {
        let ctr = test.ctr(["tasks", "exec", "--exec-id", id, &test.id, test.kind.program()]);
        arguments.iter().fold(ctr, |ctr, argument| ctr.arg(argument)).output()
    };
    let output = exec("one", &["say", "to stdout", "to stderr"])?.exits(0)?;
    ensure!(output.stdout == "to stdout" && output.stderr == "to stderr", "{output}");
    let output = exec("one", &["reply", "the id again", "7"])?.exits(test.kind.code(7))?;
    ensure!(output.stdout == "the id again\n", "{output}");
    test.kill(&test.id, "KILL")?;
    test.containerd.events.wait_for(&test.id, "/tasks/exit")?;
    test.delete(&test.id)
}

fn twenty(test: &Test) -> Result<()> {
    let task = test.task(&["pause"])?;
    std::thread::scope(|scope| {
        let task = &task;
        let all: Vec<_> = (0..20)
            .map(|number| {
                scope.spawn(move || {
                    let text = format!("text of {number}");
                    let exec = task.exec(&format!("exec-{number}"), &["reply", &text, &number.to_string()])?;
                    let output = exec.run()?.exits(test.kind.code(number))?;
                    ensure!(output.stdout == format!("{text}\n") && output.stderr.is_empty(), "{output}");
                    Ok(())
                })
            })
            .collect();
        all.into_iter().try_for_each(|exec| exec.join().map_err(|_| anyhow!("an exec panicked"))?)
    })?;
    task.end()
}

/// Seen from outside, so that it holds for guests too.
fn same_place(test: &Test) -> Result<()> {
    let task = test.task(&["pause"])?;
    let mut exec = task.exec("one", &["wait-stdin"])?;
    let pid = exec.spawn()?;
    exec.io()?.stdout.wait_for("ready")?;
    for kind in ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"] {
        let link = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/{kind}")).context("reading a namespace");
        ensure!(link(pid)? == link(task.pid)?, "its {kind} namespace is not that of init");
    }
    let cgroups = |pid: u32| fs::read_to_string(format!("/proc/{pid}/cgroup")).context("reading its cgroups");
    ensure!(cgroups(pid)? == cgroups(task.pid)?, "its cgroups are {}, init's {}", cgroups(pid)?, cgroups(task.pid)?);
    let root = |pid: u32| fs::metadata(format!("/proc/{pid}/root/")).context("looking at its root");
    use std::os::unix::fs::MetadataExt;
    ensure!((root(pid)?.dev(), root(pid)?.ino()) == (root(task.pid)?.dev(), root(task.pid)?.ino()), "another root");
    exec.end_stdin()?;
    exec.finish()?.exits(0)?;
    task.end()
}

/// A guest that is exec'd sees the container's mounts, with their flags.
fn guest_mounts(test: &Test) -> Result<()> {
    let folder = test.containerd.fresh_path("shared");
    fs::create_dir_all(&folder).context("making a folder")?;
    fs::write(folder.join("file"), "from the host").context("writing a file")?;
    let mount = json!({"destination": "/data", "type": "bind", "source": folder, "options": ["rbind", "ro"]});
    let task = test.task_of(test.spec(&["pause"])?.mount(mount)?)?;
    let output = task.exec("read", &["cat", "/data/file"])?.run()?.exits(0)?;
    ensure!(output.stdout == "from the host", "{output}");
    let output = task.exec("write", &["write", "/data/file", "changed"])?.run()?.exits(1)?;
    ensure!(fs::read_to_string(folder.join("file"))? == "from the host", "{output}");
    task.end()?;
    fs::remove_dir_all(&folder).context("removing the folder")
}

/// The file decides, exec by exec: a module runs in Wasmtime, a program natively, in the same namespaces.
fn native(test: &Test) -> Result<()> {
    let spec = test.spec(&["pause"])?.set("/root/path", json!(test.containerd.rootfs("mixed")))?;
    let task = test.task_of(spec)?;
    let output = task.exec_program("program", &["/bin/probe", "hello"])?.run()?.exits(0)?;
    ensure!(output.stdout == "hello from Linux\n", "{output}");
    let output = task.exec_program("module", &["/probe.wasm", "hello"])?.run()?.exits(0)?;
    ensure!(output.stdout == "hello from WebAssembly\n", "{output}");
    let output = task.exec_program("namespaces", &["/bin/probe", "ns"])?.run()?.exits(0)?;
    for kind in ["ipc", "mnt", "net", "pid", "uts"] {
        let link = fs::read_link(format!("/proc/{}/ns/{kind}", task.pid)).context("reading a namespace")?;
        ensure!(output.lines().contains(&link.display().to_string().as_str()), "not init's {kind} namespace: {output}");
    }
    task.end()
}

/// Said at Start, and nothing of it stays.
fn broken_modules(test: &Test) -> Result<()> {
    let spec = test.spec(&[])?.set("/process/args", json!(["/loop.wasm"]))?;
    let task = test.task_of(spec.set("/root/path", json!(test.containerd.rootfs("wasm-cases")))?)?;
    for (file, words) in
        [("/missing-import.wasm", "not_provided"), ("/truncated.wasm", "/truncated.wasm"), ("/no-entry.wasm", "_start")]
    {
        let exec = task.exec_program("one", &[file])?;
        exec.add().context("Exec")?;
        let error = exec.start().err().with_context(|| format!("{file} was started"))?.to_string();
        ensure!(error.contains(words) && error.contains("one"), "not clear: {error}");
        exec.delete().context("Delete")?;
    }
    let output = task.exec_program("trap", &["/trap.wasm"])?.run()?.exits(134)?;
    ensure!(output.stderr.contains("unreachable"), "{output}");
    task.end()
}
