//! The systemd cgroup driver. Only where systemd is process 1, on the host itself: see main.rs; elsewhere all but the last
//! are skipped.
use crate::harness::direct::refused;
use crate::harness::hooks::Hooks;
use crate::harness::leaks::Process;
use crate::harness::spec::Spec;
use crate::harness::task::Task;
use crate::harness::{Case, Kind, Runtime, Test};
use anyhow::{Context, Result, bail, ensure};
use containerd_shim_protos::api::{CreateTaskRequest, Status};
use containerd_shim_protos::shim::oci::Options;
use protobuf::well_known_types::any::Any;
use protobuf::{Message, MessageField};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use ttrpc::Code;

pub const CASES: &[Case] = &[
    Case::new("by_ctr", |test| {
        let path = format!("system.slice:probe:{}", test.id);
        let mut flags = vec!["--cgroup", &path];
        if test.runtime() == Runtime::Runc {
            flags.push("--runc-systemd-cgroup");
        }
        let output = test.run(&["cat", "/proc/self/cgroup"]).flags(&flags).done()?;
        ensure!(output.stdout == format!("0::/system.slice/probe-{}.scope\n", test.id), "{output}");
        no_unit_of(test)
    })
    .kinds(&[Kind::Linux, Kind::Core])
    .on_systemd(),
    Case::new("limits", limits).on_systemd(),
    Case::new("update", update).on_systemd(),
    Case::new("life", life).kinds(&[Kind::Linux, Kind::Core]).on_systemd(),
    Case::new("without_a_path", |test| {
        let spec = test.spec(&["pause"])?.set("/linux/cgroupsPath", json!(""))?;
        let task = created(test, spec)?;
        let prefix = if test.runtime() == Runtime::Runc { "runc" } else { "hybrid" };
        let own = cgroup_of(task.pid)?;
        ensure!(own == format!("/system.slice/{prefix}-{}.scope", test.id), "{own}");
        task.start().context("Start")?;
        end(task, test)
    })
    .on_systemd(),
    Case::new("nested_slice", |test| {
        let top = slice_of(test);
        let task = created(test, unit(test, &format!("{top}-a-b.slice"), &["pause"])?)?;
        let own = cgroup_of(task.pid)?;
        let slices = format!("{top}.slice/{top}-a.slice/{top}-a-b.slice");
        ensure!(own == format!("/{slices}/probe-{}.scope", test.id), "{own}");
        end(task, test)?;
        // systemd keeps a slice that it has made for a unit.
        systemctl(&["stop", &format!("{top}.slice")]).map(drop)
    })
    .on_systemd(),
    Case::new("a_slice_as_the_unit", |test| {
        let top = slice_of(test);
        let name = format!("{top}-a.slice");
        let resources = json!({"memory": {"limit": LIMIT}});
        let spec = test.spec(&["pause"])?.set("/linux/cgroupsPath", json!(format!("{top}.slice::{name}")))?;
        let task = created(test, spec.set("/linux/resources", resources)?)?;
        task.start().context("Start")?;
        let own = cgroup_of(task.pid)?;
        ensure!(own == format!("/{top}.slice/{name}"), "{own}");
        reload()?;
        has(task.pid, &[("memory.max", &LIMIT.to_string())])?;
        task.exec("one", &["hello"])?.run()?.exits(0)?;
        end(task, test)?;
        let left = systemctl(&["list-units", "--all", "--no-legend", &name])?;
        ensure!(left.is_empty(), "left behind: {left}");
        systemctl(&["stop", &format!("{top}.slice")]).map(drop)
    })
    .on_systemd()
    .hybrid_only(), // runc hands a slice the pid, which systemd refuses
    Case::new("killed_shim", |test| {
        let task = running(test, &["pause"])?;
        crashed(task, test, 137)
    })
    .on_systemd(),
    Case::new("killed_shim_of_an_ended_init", |test| {
        let task = running(test, &["exit", "7"])?;
        task.wait().context("Wait")?;
        crashed(task, test, if test.runtime() == Runtime::Runc { 137 } else { 7 })
    })
    .on_systemd(),
    Case::new("poststop_hooks_of_an_ended_init", |test| {
        let hooks = Hooks::new(test)?;
        let spec =
            hooks.add(unit(test, "system.slice", &["exit", "7"])?, json!({"poststop": [hooks.host("last", &[])]}))?;
        let task = created(test, spec)?;
        task.start().context("Start")?;
        task.wait().context("Wait")?;
        let shim = task.connected().context("Connect")?.shim_pid;
        Process::of(shim).context("the shim has ended")?.kill()?;
        for _ in 0..2 {
            // Without its cgroup, which is gone by now, and once.
            task.direct.delete()?;
            hooks.ran(&["last"])?;
        }
        no_unit_of(test)?;
        task.direct.remove()?;
        hooks.remove()
    })
    .on_systemd(),
    Case::new("killed_shim_without_a_path", |test| {
        let spec = test.spec(&["pause"])?.set("/linux/cgroupsPath", json!(""))?;
        let task = created(test, spec)?;
        task.start().context("Start")?;
        crashed(task, test, 137)
    })
    .on_systemd(),
    Case::new("out_of_memory", |test| {
        let spec = unit(test, "system.slice", &["eat", "400"])?;
        let task = created(test, spec.set("/linux/resources", json!({"memory": {"limit": LIMIT}}))?)?;
        task.start().context("Start")?;
        ensure!(task.wait().context("Wait")?.exit_status == 137, "exit status");
        test.containerd.events.wait_for(&test.id, "/tasks/oom")?;
        end(task, test)
    })
    .on_systemd(),
    Case::new("a_create_that_fails", |test| {
        let spec = unit(test, "system.slice", &[])?.set("/process/args", json!(["/no/such/program"]))?;
        let direct = test.direct()?.config(&spec)?;
        let server = direct.start()?;
        let error = server.create_as(|request| by_systemd(test, request)).err().context("it was created")?;
        ensure!(error.to_string().contains("/no/such/program"), "{error}");
        no_unit_of(test)?;
        server.shutdown()?;
        direct.remove()
    })
    .on_systemd(),
    Case::new("a_name_that_is_taken", |test| {
        let name = format!("probe-{}.scope", test.id);
        let mut other =
            Command::new("systemd-run").args(["--quiet", "--scope", "--unit", &name, "sleep", "1000"]).spawn()?;
        let taken = wait_until(|| Ok(systemctl(&["is-active", &name])?.trim() == "active"));
        let refused = taken.and_then(|()| refusal(test, unit(test, "system.slice", &["pause"])?));
        let still = systemctl(&["is-active", &name]);
        systemctl(&["kill", "--signal=KILL", &name])?;
        other.wait()?;
        let (code, words) = refused?;
        ensure!(code == Code::FAILED_PRECONDITION && words.contains(&test.id), "{code:?}: {words}");
        ensure!(still?.trim() == "active", "it was stopped");
        wait_until(|| no_unit_of(test).map(|()| true).or(Ok(false)))
    })
    .on_systemd()
    .hybrid_only(), // the words and the code are ours
    Case::new("a_frozen_slice", |test| {
        let slice = format!("{}.slice", slice_of(test));
        systemctl(&["start", &slice])?;
        systemctl(&["freeze", &slice])?;
        let state = systemctl(&["show", "--property=FreezerState", &slice])?;
        let refused = refusal(test, unit(test, &slice, &["pause"])?).with_context(|| state);
        systemctl(&["thaw", &slice])?;
        systemctl(&["stop", &slice])?;
        let (code, words) = refused?;
        ensure!(code == Code::FAILED_PRECONDITION && words.contains("frozen"), "{code:?}: {words}");
        no_unit_of(test)
    })
    .on_systemd()
    .hybrid_only(), // as above
    Case::new("paths_that_name_no_unit", |test| {
        for path in ["/default/box", "a:probe:box", "a.slice:probe:b/c", "system.slice:probe:other.slice"] {
            let spec = test.spec(&["pause"])?.set("/linux/cgroupsPath", json!(path))?;
            let (code, words) = refusal(test, spec)?;
            ensure!(code == Code::INVALID_ARGUMENT && words.contains("linux.cgroupsPath"), "{path}: {code:?}: {words}");
        }
        no_unit_of(test)
    })
    .on_systemd()
    .hybrid_only(), // as above
    Case::new("one_process_only", |test| {
        let spec = unit(test, "system.slice", &["pause"])?.set("/linux/resources", json!({"pids": {"limit": 1}}))?;
        let task = created(test, spec)?;
        task.start().context("Start")?;
        has(task.pid, &[("pids.max", "1"), ("pids.current", "1")])?;
        end(task, test)
    })
    .on_systemd()
    .hybrid_only(), // runc's init has threads
    Case::new("no_connection_stays", |test| {
        let task = running(test, &["pause"])?;
        task.update(json!({"pids": {"limit": 100}})).context("Update")?;
        let shim = task.connected().context("Connect")?.shim_pid;
        // The runtime's threads for blocking calls end some time after them.
        wait_until(|| Ok(fs::read_dir(format!("/proc/{shim}/task"))?.count() == 1))?;
        for descriptor in fs::read_dir(format!("/proc/{shim}/fd"))? {
            let target = fs::read_link(descriptor?.path())?;
            let Some(inode) = target.to_str().and_then(|text| text.strip_prefix("socket:[")?.strip_suffix(']')) else {
                continue;
            };
            let sockets = fs::read_to_string("/proc/net/unix")?;
            let line = sockets.lines().find(|line| line.contains(&format!(" {inode}"))).unwrap_or_default();
            ensure!(!line.contains("dbus") && !line.contains("systemd"), "{line}");
        }
        end(task, test)
    })
    .on_systemd()
    .hybrid_only(), // runc's shim keeps none either, being a process for each call
    Case::new("no_systemd", |test| {
        let refusal = refusal(test, unit(test, "system.slice", &["pause"])?)?;
        ensure!(refusal.0 == Code::FAILED_PRECONDITION && refusal.1.contains("systemd"), "{refusal:?}");
        // Nor with the option alone.
        let direct = test.direct()?.config(&test.spec(&["pause"])?.set("/linux/cgroupsPath", json!(""))?)?;
        let server = direct.start()?;
        let words = refused(server.create_as(|request| request.options = options()), Code::FAILED_PRECONDITION)?;
        ensure!(words.contains("SystemdCgroup"), "{words}");
        server.shutdown()?;
        direct.remove()
    })
    .hybrid_only(), // the words and the code are ours
];

const LIMIT: u64 = 96 << 20;

/// The spec with a scope of the test's own in a slice.
fn unit<'a>(test: &Test<'a>, slice: &str, arguments: &[&str]) -> Result<Spec<'a>> {
    test.spec(arguments)?.set("/linux/cgroupsPath", json!(format!("{slice}:probe:{}", test.id)))
}

/// The name of a slice of the test's own, without its ending.
fn slice_of(test: &Test) -> String {
    test.id.replace('-', "_")
}

fn options() -> MessageField<Any> {
    let options = Options { systemd_cgroup: true, ..Default::default() };
    let value = options.write_to_bytes().expect("options can be encoded");
    MessageField::some(Any { type_url: "containerd.runc.v1.Options".to_owned(), value, ..Default::default() })
}

/// runc takes `slice:prefix:name` for a path without the option; hybrid does not need it.
fn by_systemd(test: &Test, request: &mut CreateTaskRequest) {
    let config = fs::read_to_string(Path::new(&request.bundle).join("config.json")).unwrap_or_default();
    let config: Value = serde_json::from_str(&config).unwrap_or_default();
    let path = config["linux"]["cgroupsPath"].as_str().unwrap_or_default();
    if test.runtime() == Runtime::Runc || path.matches(':').count() != 2 || path.contains('/') {
        request.options = options();
    }
}

fn created<'a>(test: &Test<'a>, spec: Spec<'a>) -> Result<Task<'a>> {
    test.created(spec, |request| by_systemd(test, request))
}

fn running<'a>(test: &Test<'a>, arguments: &[&str]) -> Result<Task<'a>> {
    let task = created(test, unit(test, "system.slice", arguments)?)?;
    task.start().context("Start")?;
    Ok(task)
}

/// Why it is not created; nothing is left of the try.
fn refusal(test: &Test, spec: Spec) -> Result<(Code, String)> {
    let direct = test.direct()?.config(&spec)?;
    let server = direct.start()?;
    let error = server.create_as(|request| by_systemd(test, request)).err().context("it was created")?;
    server.shutdown()?;
    direct.remove()?;
    match error {
        ttrpc::Error::RpcStatus(status) => Ok((status.code(), status.message)),
        other => bail!("{other}"),
    }
}

fn end(task: Task, test: &Test) -> Result<()> {
    task.end()?;
    no_unit_of(test)
}

/// Kills the task's server, then does as containerd does.
fn crashed(task: Task, test: &Test, code: u32) -> Result<()> {
    let shim = task.connected().context("Connect")?.shim_pid;
    Process::of(shim).context("the shim has ended")?.kill()?;
    let response = task.direct.delete()?;
    ensure!(response.exit_status == code, "{response:?}");
    Process::of(task.pid).map_or(Ok(()), |init| init.wait_for_end()).context("init still runs")?;
    no_unit_of(test)?;
    task.direct.remove()
}

fn limits(test: &Test) -> Result<()> {
    let resources = json!({
        "memory": {"limit": LIMIT, "swap": LIMIT * 2, "reservation": LIMIT / 2},
        "cpu": {"shares": 2048, "quota": 55_500, "period": 100_000, "cpus": "1", "mems": "0"},
        "pids": {"limit": 100},
        "unified": {"memory.high": "88080384", "memory.oom.group": "1"},
    });
    let task = created(test, unit(test, "system.slice", &["pause"])?.set("/linux/resources", resources)?)?;
    let (max, low) = (LIMIT.to_string(), (LIMIT / 2).to_string());
    let files = [
        ("memory.max", max.as_str()),
        ("memory.low", &low),
        ("memory.high", "88080384"),
        ("memory.swap.max", &max),
        ("memory.oom.group", "1"),
        ("cpuset.cpus", "1"),
        ("cpuset.mems", "0"),
        ("pids.max", "100"),
    ];
    has(task.pid, &files)?;
    if test.runtime() == Runtime::Hybrid {
        // runc's versions convert shares in two ways, and write the quota to the file or systemd's whole percents.
        has(task.pid, &[("cpu.weight", "174"), ("cpu.max", "55500 100000")])?;
        shows(test, &[("CPUWeight", "174"), ("OOMPolicy", "kill")])?;
    }
    task.start().context("Start")?;
    shows(
        test,
        &[
            ("Slice", "system.slice"),
            ("Delegate", "yes"),
            ("DefaultDependencies", "no"),
            ("MemoryMax", &max),
            ("MemoryLow", &low),
            ("MemoryHigh", "88080384"),
            ("MemorySwapMax", &max),
            ("CPUQuotaPerSecUSec", "560ms"),
            ("AllowedCPUs", "1"),
            ("AllowedMemoryNodes", "0"),
            ("TasksMax", "100"),
            ("CPUAccounting", "yes"),
            ("MemoryAccounting", "yes"),
            ("IOAccounting", "yes"),
            ("TasksAccounting", "yes"),
            ("ActiveState", "active"),
        ],
    )?;
    reload()?;
    has(task.pid, &files)?;
    end(task, test)
}

fn update(test: &Test) -> Result<()> {
    let resources = json!({"memory": {"limit": LIMIT}, "pids": {"limit": 100}});
    let task = created(test, unit(test, "system.slice", &["pause"])?.set("/linux/resources", resources)?)?;
    task.start().context("Start")?;
    let resources = json!({
        "memory": {"limit": LIMIT * 2},
        "cpu": {"shares": 2048, "quota": 20_000, "period": 50_000, "cpus": "0"},
        "pids": {"limit": 50},
    });
    task.update(resources).context("Update")?;
    let max = (LIMIT * 2).to_string();
    let files = [("memory.max", max.as_str()), ("cpu.max", "20000 50000"), ("cpuset.cpus", "0"), ("pids.max", "50")];
    has(task.pid, &files)?;
    let properties = [
        ("MemoryMax", max.as_str()),
        ("CPUQuotaPerSecUSec", "400ms"),
        ("CPUQuotaPeriodUSec", "50ms"),
        ("AllowedCPUs", "0"),
        ("TasksMax", "50"),
    ];
    shows(test, &properties)?;
    reload()?;
    has(task.pid, &files)?;
    if test.runtime() == Runtime::Hybrid {
        has(task.pid, &[("cpu.weight", "174")])?;
        shows(test, &[("CPUWeight", "174")])?;
        // Nothing changes where one thing can't.
        let wrong = task.update(json!({"pids": {"limit": 40}, "cpu": {"cpus": "4095"}}));
        ensure!(wrong.is_err(), "there is no such CPU");
        has(task.pid, &files)?;
        shows(test, &properties)?;
    }
    end(task, test)
}

/// What the task API does with a cgroup, and a process that joins it.
fn life(test: &Test) -> Result<()> {
    let task = running(test, &["pause"])?;
    let own = cgroup_of(task.pid)?;
    let mut exec = task.exec("one", &["pause"])?;
    let pid = exec.spawn()?;
    exec.io()?.stdout.wait_for("ready")?;
    ensure!(cgroup_of(pid)? == own, "the exec is in {}", cgroup_of(pid)?);
    let pids: Vec<u32> = task.pids().context("Pids")?.processes.iter().map(|process| process.pid).collect();
    ensure!(pids.contains(&task.pid) && pids.contains(&pid) && pids.len() == 2, "{pids:?}");
    drop(exec);
    task.stats().context("Stats")?;
    task.pause().context("Pause")?;
    ensure!(task.state().context("State")?.status() == Status::PAUSED, "not paused");
    has(task.pid, &[("cgroup.freeze", "1")])?;
    task.resume().context("Resume")?;
    has(task.pid, &[("cgroup.freeze", "0")])?;
    task.pause().context("Pause")?;
    end(task, test)
}

/// The path of a process's cgroup of v2.
fn cgroup_of(pid: u32) -> Result<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).context("reading a process's cgroup")?;
    text.lines().find_map(|line| line.strip_prefix("0::")).map(str::to_owned).context("no cgroup of v2")
}

/// Fails unless the files of a process's cgroup read so.
fn has(pid: u32, files: &[(&str, &str)]) -> Result<()> {
    let folder = PathBuf::from(format!("/sys/fs/cgroup{}", cgroup_of(pid)?));
    for (file, wanted) in files {
        let text = fs::read_to_string(folder.join(file)).with_context(|| format!("reading {file}"))?;
        ensure!(text.trim() == *wanted, "{file}: {} instead of {wanted}", text.trim());
    }
    Ok(())
}

/// Fails unless systemd says so of the test's scope.
fn shows(test: &Test, properties: &[(&str, &str)]) -> Result<()> {
    let text = systemctl(&["show", &format!("probe-{}.scope", test.id)])?;
    for (name, wanted) in properties {
        let line = format!("{name}={wanted}");
        let found = text.lines().find(|found| found.starts_with(&format!("{name}=")));
        ensure!(found == Some(&line), "{found:?} instead of {line}");
    }
    Ok(())
}

/// systemd knows no unit of the test's any more, not even as failed.
fn no_unit_of(test: &Test) -> Result<()> {
    let left = systemctl(&["list-units", "--all", "--no-legend", "--plain", &format!("*{}*.scope", test.id)])?;
    ensure!(left.is_empty(), "left behind: {left}");
    Ok(())
}

/// Has systemd read its units again, and with that write what it knows of them.
fn reload() -> Result<()> {
    systemctl(&["daemon-reload"]).map(drop)
}

fn systemctl(arguments: &[&str]) -> Result<String> {
    let output = Command::new("systemctl").args(arguments).output().context("executing systemctl")?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// For what systemd does in its own time.
fn wait_until(mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = std::time::Instant::now() + crate::harness::PATIENCE / 4;
    while !done()? {
        ensure!(std::time::Instant::now() < deadline, "it does not come to pass");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    Ok(())
}
