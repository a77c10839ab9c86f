//! Namespaces, names, sysctls, devices, seccomp, cgroups.
use crate::harness::leaks::Process;
use crate::harness::{Case, NAMESPACE, Test};
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::fs;
use std::path::PathBuf;

pub const CASES: &[Case] = &[
    Case::new("namespaces_of_its_own", namespaces),
    Case::new("namespace_joined_by_path", joined),
    Case::new("host_network", |test| {
        let inside = test.run(&["ns"]).flags(&["--net-host"]).done()?;
        ensure!(inside.lines().contains(&own_namespace("net")?.as_str()), "{inside}");
        Ok(())
    }),
    Case::new("init_is_process_1", |test| {
        let output = test.run(&["cat", "/proc/self/stat"]).done()?;
        ensure!(output.stdout.starts_with("1 (probe)"), "{output}");
        Ok(())
    }),
    Case::new("hostname_and_domainname", |test| {
        let spec =
            test.spec(&["names"])?.set("/hostname", json!("some-host"))?.set("/domainname", json!("some.domain"))?;
        let output = spec.run()?.done()?;
        ensure!(output.stdout == "some-host some.domain\n", "{output}");
        Ok(())
    })
    .hybrid_only(), // runc knows domainname from 1.1.8 on
    Case::new("hostname", |test| {
        let output = test.spec(&["names"])?.set("/hostname", json!("some-host"))?.run()?.done()?;
        ensure!(output.stdout.starts_with("some-host "), "{output}");
        Ok(())
    }),
    Case::new("sysctl", |test| {
        let spec = test.spec(&["cat", "/proc/sys/net/ipv4/ip_unprivileged_port_start"])?;
        let spec = spec.set("/linux/sysctl", json!({"net.ipv4.ip_unprivileged_port_start": "777"}))?;
        let output = spec.run()?.done()?;
        ensure!(output.stdout == "777\n", "{output}");
        Ok(())
    }),
    Case::new("seccomp_filters", seccomp),
    Case::new("seccomp_default_profile", |test| {
        let output = test.run(&["try", "keyctl"]).flags(&["--seccomp"]).done()?;
        ensure!(output.stdout == "Operation not permitted\n", "{output}");
        Ok(())
    }),
    Case::new("default_devices", devices),
    Case::new("no_device_but_the_spec_s", |test| {
        let spec = test.spec(&["try", "open", "/dev/other"])?;
        // Block device 7:0 (loop), made as root may; opening it is what the cgroup forbids.
        let spec = spec.set("/linux/devices", json!([{"path": "/dev/other", "type": "b", "major": 7, "minor": 0}]))?;
        let output = spec.run()?.done()?;
        ensure!(output.stdout == "Operation not permitted\n", "{output}");
        Ok(())
    }),
    Case::new("device_of_the_spec", |test| {
        let device =
            json!([{"path": "/dev/mine", "type": "c", "major": 1, "minor": 5, "fileMode": 0o640, "uid": 7, "gid": 8}]);
        let output = test.spec(&["stat", "/dev/mine"])?.set("/linux/devices", device)?.run()?.done()?;
        ensure!(output.stdout == "20640 7 8 0 1:5\n", "{output}");
        Ok(())
    }),
    Case::new("privileged_calls_refused", |test| {
        for what in ["mount", "unshare", "sethostname"] {
            let output = test.run(&["try", what]).id(&test.other(what)).done()?;
            ensure!(output.stdout == "Operation not permitted\n", "{what}: {output}");
        }
        Ok(())
    }),
    Case::new("cgroup_path", cgroup_path).all(),
    Case::new("cgroup_limits", limits),
];

fn own_namespace(kind: &str) -> Result<String> {
    let link =
        fs::read_link(format!("/proc/self/ns/{kind}")).with_context(|| format!("reading our {kind} namespace"))?;
    Ok(link.display().to_string())
}

fn namespaces(test: &Test) -> Result<()> {
    let inside = test.run(&["ns"]).done()?;
    for kind in ["ipc", "mnt", "net", "pid", "uts"] {
        ensure!(!inside.lines().contains(&own_namespace(kind)?.as_str()), "the {kind} namespace is ours: {inside}");
    }
    ensure!(inside.lines().contains(&own_namespace("user")?.as_str()), "a user namespace nobody asked for: {inside}");
    Ok(())
}

/// As the containers of a pod do: the second joins the network, ipc and uts namespaces of the first.
fn joined(test: &Test) -> Result<()> {
    let first = test.run(&["pause"]).spawn()?;
    first.wait_for("ready")?;
    let pid = test.pid(&test.id)?;
    let links = ["net", "ipc", "uts"].map(|kind| fs::read_link(format!("/proc/{pid}/ns/{kind}")));
    let flags: Vec<String> = [("network", "net"), ("ipc", "ipc"), ("uts", "uts")]
        .iter()
        .flat_map(|(name, kind)| ["--with-ns".to_owned(), format!("{name}:/proc/{pid}/ns/{kind}")])
        .collect();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let second = test.run(&["ns"]).id(&test.other("second")).flags(&flags).done()?;
    for link in links {
        let link = link.context("reading the namespaces of the first")?;
        ensure!(second.lines().contains(&link.to_string_lossy().as_ref()), "{link:?} was not joined: {second}");
    }
    test.kill(&test.id, "KILL")?;
    first.finish()?.exits(137).map(drop)
}

fn seccomp(test: &Test) -> Result<()> {
    let without = test.run(&["id"]).id(&test.other("without")).done()?;
    ensure!(without.lines().contains(&"Seccomp:\t0"), "{without}");
    let with = test.run(&["id"]).flags(&["--seccomp"]).done()?;
    ensure!(with.lines().contains(&"Seccomp:\t2"), "{with}");
    Ok(())
}

fn devices(test: &Test) -> Result<()> {
    let output = test.run(&["ls", "/dev"]).done()?;
    for name in ["null", "zero", "full", "random", "urandom", "tty", "ptmx", "fd", "stdin", "stdout", "stderr"] {
        ensure!(output.lines().contains(&name), "no /dev/{name}: {output}");
    }
    let output = test.run(&["stat", "/dev/null"]).id(&test.other("null")).done()?;
    ensure!(output.stdout == "20666 0 0 0 1:3\n", "{output}");
    let output = test.run(&["write", "/dev/full", "text"]).id(&test.other("full")).output()?;
    output.refused(&["No space left on device"]).map(drop)
}

/// The folders, one for each hierarchy, of the cgroup `ctr` names after namespace and id.
fn cgroups_of(id: &str) -> Vec<PathBuf> {
    let below = format!("{NAMESPACE}/{id}");
    let hierarchies =
        fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path().join(&below));
    hierarchies.chain([PathBuf::from("/sys/fs/cgroup").join(&below)]).filter(|path| path.is_dir()).collect()
}

fn cgroup_path(test: &Test) -> Result<()> {
    let running = test.run(&["spin"]).spawn()?;
    running.wait_for("ready")?;
    let pid = test.pid(&test.id)?;
    let folders = cgroups_of(&test.id);
    ensure!(!folders.is_empty(), "no cgroup /{NAMESPACE}/{}", test.id);
    for folder in folders {
        let members = fs::read_to_string(folder.join("cgroup.procs")).context("reading cgroup.procs")?;
        // In runc's case the unified hierarchy beside v1 is not used for the container.
        if !members.is_empty() {
            ensure!(members.lines().any(|line| line == pid.to_string()), "{pid} is not in {}", folder.display());
        }
    }
    let process = Process::of(pid).context("init has ended")?;
    ensure!(process.parent != 1, "init is nobody's child");
    test.kill(&test.id, "KILL")?;
    running.finish()?.exits(137).map(drop)
}

fn limits(test: &Test) -> Result<()> {
    let spec = test.spec(&["pause"])?.set(
        "/linux/resources",
        json!({
            "memory": {"limit": 67_108_864},
            "pids": {"limit": 77},
            "cpu": {"shares": 512, "quota": 50_000, "period": 100_000},
            "devices": [{"allow": false, "access": "rwm"}],
        }),
    )?;
    let running = spec.run()?.spawn()?;
    running.wait_for("ready")?;
    // v1 and v2 name them differently; 512 shares are a weight of 20 of 10000 (runc's conversion, cgroups-rs's too).
    let expected = [
        (["memory.limit_in_bytes", "memory.max"], ["67108864"].as_slice()),
        (["pids.max", "pids.max"], &["77"]),
        (["cpu.cfs_quota_us", "cpu.max"], &["50000", "50000 100000"]),
        (["cpu.shares", "cpu.weight"], &["512", "20", "59"]),
    ];
    let folders = cgroups_of(&test.id);
    for (names, values) in expected {
        let file = folders.iter().flat_map(|folder| names.map(|name| folder.join(name))).find(|file| file.exists());
        let file = file.with_context(|| format!("none of {names:?} in {folders:?}"))?;
        let value = fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
        ensure!(values.contains(&value.trim()), "{} holds {value}", file.display());
    }
    test.kill(&test.id, "KILL")?;
    running.finish()?.exits(137).map(drop)
}
