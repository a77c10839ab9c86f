//! Namespaces beyond those that `ctr` asks for: of time, and of users and mounts that exist already.
use crate::harness::command::Running;
use crate::harness::spec::Spec;
use crate::harness::{Case, NAMESPACE, Test};
use crate::user_namespace::mapped;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::fs;
use std::process::Command;

pub const CASES: &[Case] = &[
    Case::new("time_of_its_own", |test| {
        let task = test.task_of(with_clocks(test.spec(&["cat", "/proc/uptime"])?)?)?;
        task.wait().context("Wait")?;
        let output = task.stdout()?;
        ensure!(seconds(&output)? > 864_000.0, "{output}");
        task.end()
    })
    .all()
    .hybrid_only(), // runc knows it from 1.2 on
    Case::new("time_of_an_exec", |test| {
        let task = test.task_of(with_clocks(test.spec(&["pause"])?)?)?;
        let own = fs::read_link("/proc/self/ns/time").context("reading the test's own namespace")?;
        let init = fs::read_link(format!("/proc/{}/ns/time", task.pid)).context("reading that of init")?;
        ensure!(own != init, "{own:?}");
        let output = task.exec("one", &["cat", "/proc/uptime"])?.run()?.exits(0)?;
        ensure!(seconds(&output.stdout)? > 864_000.0, "{output}");
        let output = task.exec("two", &["cat", "/proc/self/timens_offsets"])?.run()?.exits(0)?;
        let numbers: Vec<&str> = output.stdout.split_whitespace().collect();
        ensure!(numbers == ["monotonic", "1000", "500", "boottime", "864000", "0"], "{output}");
        task.end()
    })
    .all()
    .hybrid_only(),
    Case::new("time_in_a_user_namespace", |test| {
        let task = test.task_of(with_clocks(mapped(test, &["pause"])?)?)?;
        let output = task.exec("one", &["cat", "/proc/uptime"])?.run()?.exits(0)?;
        ensure!(seconds(&output.stdout)? > 864_000.0, "{output}");
        let map = task.exec("two", &["cat", "/proc/self/uid_map"])?.run()?.exits(0)?;
        ensure!(map.stdout.split_whitespace().collect::<Vec<_>>() == ["0", "100000", "65536"], "{map}");
        task.end()
    })
    .hybrid_only(),
    Case::new("time_joined", |test| {
        let first = test.task_of(with_clocks(test.spec(&["pause"])?)?)?;
        for (suffix, spec) in
            [("plain", test.spec(&["cat", "/proc/uptime"])?), ("mapped", mapped(test, &["cat", "/proc/uptime"])?)]
        {
            let id = test.other(suffix);
            let spec = with_namespace(spec, "time", Some(&format!("/proc/{}/ns/time", first.pid)))?;
            let output = of_its_own(spec, &id)?.run()?.id(&id).done()?;
            ensure!(seconds(&output.stdout)? > 864_000.0, "{suffix}: {output}");
        }
        first.end()
    })
    .hybrid_only(),
    Case::new("clocks_that_cannot_be", |test| {
        let spec = test.spec(&["hello"])?.set("/linux/timeOffsets", json!({"boottime": {"secs": 1}}))?;
        refused(test, &spec, &["linux.timeOffsets", "no time namespace"])?;
        // The kernel lets no clock begin before zero.
        let spec = with_namespace(test.spec(&["hello"])?, "time", None)?;
        let spec = spec.set("/linux/timeOffsets", json!({"boottime": {"secs": -4_000_000_000i64}}))?;
        refused(test, &spec, &["linux.timeOffsets: set"])
    })
    .hybrid_only(),
    Case::new("user_joined", |test| {
        let first = test.task_of(mapped(test, &["pause"])?)?;
        let id = test.other("second");
        let task = test.created_as(&id, joining_users(test, &id, first.pid, &["pause"])?)?;
        task.start().context("Start")?;
        for kind in ["user", "pid", "mnt", "net"] {
            let of = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/{kind}")).context("reading a namespace");
            ensure!((of(first.pid)? == of(task.pid)?) == (kind == "user"), "{kind}");
        }
        let map = task.exec("map", &["cat", "/proc/self/uid_map"])?.run()?.exits(0)?;
        ensure!(map.stdout.split_whitespace().collect::<Vec<_>>() == ["0", "100000", "65536"], "{map}");
        task.exec("write", &["write", "/run/file", "text"])?.run()?.exits(0)?;
        let seen = task.exec("stat", &["stat", "/run/file"])?.run()?.exits(0)?;
        ensure!(seen.stdout.contains(" 0 0 4"), "{seen}");
        task.end()?;
        first.end()
    })
    .all()
    .hybrid_only(),
    Case::new("user_joined_with_mappings", |test| {
        let first = test.task_of(mapped(test, &["pause"])?)?;
        // As containerd gives them: the same once more.
        let id = test.other("same");
        let spec = joining_users(test, &id, first.pid, &["cat", "/proc/self/gid_map"])?;
        let same = mapped(test, &[])?.value["linux"].clone();
        let spec = spec.set("/linux/uidMappings", same["uidMappings"].clone())?;
        let spec = spec.set("/linux/gidMappings", same["gidMappings"].clone())?;
        let output = spec.run()?.id(&id).done()?;
        ensure!(output.stdout.split_whitespace().collect::<Vec<_>>() == ["0", "200000", "65536"], "{output}");
        let id = test.other("others");
        let spec = joining_users(test, &id, first.pid, &["hello"])?;
        let range = json!([{"containerID": 0, "hostID": 5, "size": 7}]);
        let spec = spec.set("/linux/uidMappings", range.clone())?.set("/linux/gidMappings", range)?;
        spec.run()?.id(&id).output()?.refused(&["linux.uidMappings", "not those of the user namespace"])?;
        first.end()
    })
    .hybrid_only(),
    Case::new("user_namespace_of_the_host", |test| {
        let spec = with_namespace(test.spec(&["cat", "/proc/self/uid_map"])?, "user", Some("/proc/self/ns/user"))?;
        let output = spec.run()?.done()?;
        ensure!(output.stdout.split_whitespace().collect::<Vec<_>>() == ["0", "0", "4294967295"], "{output}");
        Ok(())
    })
    .hybrid_only(), // runc 1.1 asks for mappings
    Case::new("mounts_joined", |test| {
        let holder = Running::spawn(Command::new("unshare").args(["-m", "sh", "-c", "echo $$; exec cat"]))?;
        holder.wait_for("\n")?;
        let pid: u32 = holder.text().trim().parse().context("the pid of the holder")?;
        let path = format!("/proc/{pid}/ns/mnt");
        let task = test.task_of(with_namespace(test.spec(&["pause"])?, "mount", Some(&path))?)?;
        let of = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/mnt")).context("reading a namespace");
        ensure!(of(pid)? == of(task.pid)?, "the namespace was not joined");
        let seen = task.exec("passwd", &["cat", "/etc/passwd"])?.run()?.exits(0)?;
        ensure!(seen.stdout.contains("/bin/probe"), "{seen}");
        task.end()?;
        holder.finish()?.exits(0).map(drop)
    }),
    Case::new("of_another_kind", |test| {
        for (kind, path, words) in [
            ("mount", "/proc/self/ns/net", ["linux.namespaces", "mount namespace"]),
            ("network", "/proc/self/ns/mnt", ["linux.namespaces", "network namespace"]),
            ("cgroup", "/proc/self/ns/ipc", ["linux.namespaces", "cgroup namespace"]),
            // Its root would be moved away.
            ("mount", "/proc/self/ns/mnt", ["linux.namespaces", "mount namespace of the host"]),
        ] {
            refused(test, &with_namespace(test.spec(&["hello"])?, kind, Some(path))?, &words)?;
        }
        Ok(())
    })
    .hybrid_only(), // runc moves the host's root away
    Case::new("mounts_of_the_host", |test| {
        let spec = without_mounts(test.spec(&["pause"])?)?;
        let rootfs = spec.value["root"]["path"].as_str().context("root.path")?.to_owned();
        let task = test.task_of(spec)?;
        let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/mnt")).context("reading a namespace");
        ensure!(of("self")? == of(&task.pid.to_string())?, "it has a mount namespace");
        let seen = task.exec("passwd", &["cat", "/etc/passwd"])?.run()?.exits(0)?;
        ensure!(seen.stdout.contains("/bin/probe"), "{seen}");
        let mountinfo = fs::read_to_string("/proc/self/mountinfo").context("mountinfo")?;
        let rootfs = task.server.bundle().join(rootfs);
        for below in ["", "/proc", "/dev/pts"] {
            let at = format!(" {}{below} ", rootfs.display());
            let line = mountinfo.lines().find(|line| line.contains(&at)).with_context(|| format!("nothing at{at}"))?;
            ensure!(!line.contains(" shared:"), "{line}");
        }
        task.end()?;
        let mountinfo = fs::read_to_string("/proc/self/mountinfo").context("mountinfo")?;
        ensure!(!mountinfo.contains(&format!(" {}", rootfs.display())), "{mountinfo}");
        // What fails later is undone.
        let id = test.other("fails");
        let spec = of_its_own(without_mounts(test.spec(&["no-such-program"])?)?, &id)?;
        spec.set("/process/args", json!(["/no/such/program"]))?.run()?.id(&id).output()?.refused(&["process.args"])?;
        Ok(())
    })
    .hybrid_only(), // runc leaves the rootfs mounted
];

/// Not through `ctr`, as that of 1.6 does not know all fields.
fn refused(test: &Test, spec: &Spec, words: &[&str]) -> Result<()> {
    let direct = test.direct()?.config(spec)?;
    let server = direct.start()?;
    let error = server.create().err().context("it was created")?.to_string();
    ensure!(words.iter().all(|word| error.contains(word)), "{error} lacks one of {words:?}");
    server.shutdown()?;
    direct.remove()
}

/// A time namespace whose clocks are ahead.
fn with_clocks(spec: Spec<'_>) -> Result<Spec<'_>> {
    let offsets = json!({"boottime": {"secs": 864_000}, "monotonic": {"secs": 1000, "nanosecs": 500}});
    with_namespace(spec, "time", None)?.set("/linux/timeOffsets", offsets)
}

/// The first number of /proc/uptime, which is that of the boot clock.
fn seconds(uptime: &str) -> Result<f64> {
    uptime.split(' ').next().and_then(|word| word.parse().ok()).with_context(|| format!("no number in {uptime:?}"))
}

/// The spec with a namespace of that kind in place of any other: a new one, or that at a path.
fn with_namespace<'a>(mut spec: Spec<'a>, kind: &str, path: Option<&str>) -> Result<Spec<'a>> {
    let namespaces = spec.value["linux"]["namespaces"].as_array_mut().context("namespaces")?;
    namespaces.retain(|namespace| namespace["type"] != kind);
    namespaces.push(match path {
        Some(path) => json!({"type": kind, "path": path}),
        None => json!({"type": kind}),
    });
    Ok(spec)
}

/// The spec without a mount namespace, and without what needs one.
pub fn without_mounts(mut spec: Spec<'_>) -> Result<Spec<'_>> {
    let namespaces = spec.value["linux"]["namespaces"].as_array_mut().context("namespaces")?;
    namespaces.retain(|namespace| namespace["type"] != "mount");
    spec.set("/linux/maskedPaths", json!([]))?.set("/linux/readonlyPaths", json!([]))
}

/// The spec in a cgroup for that container.
fn of_its_own<'a>(spec: Spec<'a>, id: &str) -> Result<Spec<'a>> {
    spec.set("/linux/cgroupsPath", json!(format!("/{NAMESPACE}/{id}")))
}

/// A spec with the user namespace of a process, and no mappings.
fn joining_users<'a>(test: &Test<'a>, id: &str, pid: u32, arguments: &[&str]) -> Result<Spec<'a>> {
    let spec = of_its_own(test.spec(arguments)?, id)?;
    with_namespace(spec, "user", Some(&format!("/proc/{pid}/ns/user")))?.set("/linux/uidMappings", Value::Null)
}
