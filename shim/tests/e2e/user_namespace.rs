//! User namespaces: whose the processes and files are inside and outside, and what goes on working in them.
use crate::harness::direct::refused;
use crate::harness::fifos::Fifos;
use crate::harness::spec::Spec;
use crate::harness::{Case, Runtime, Test};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown};
use std::path::{Path, PathBuf};
use ttrpc::Code;

/// The container's root on the host.
const UID: u32 = 100_000;
const GID: u32 = 200_000;

pub const CASES: &[Case] = &[
    Case::new("by_ctr", |test| {
        let flags = ["--uidmap", "0:100000:65536", "--gidmap", "0:200000:65536"];
        let inside = test.run(&["cat", "/proc/self/uid_map"]).id(&test.other("uid")).flags(&flags).done()?;
        ensure!(numbers(&inside.stdout) == [[0, 100_000, 65536]], "{inside}");
        let inside = test.run(&["cat", "/proc/self/gid_map"]).id(&test.other("gid")).flags(&flags).done()?;
        ensure!(numbers(&inside.stdout) == [[0, 200_000, 65536]], "{inside}");
        // The snapshot was made the container's.
        let inside = test.run(&["write", "/data/file", "text"]).id(&test.other("write")).flags(&flags).done()?;
        ensure!(inside.stderr.is_empty(), "{inside}");
        Ok(())
    })
    .all(),
    Case::new("several_ranges", |test| {
        let ranges = json!([
            {"containerID": 0, "hostID": UID, "size": 10},
            {"containerID": 10, "hostID": 300_000, "size": 5},
            {"containerID": 1000, "hostID": 1000, "size": 1},
        ]);
        let spec = mapped(test, &["cat", "/proc/self/uid_map"])?.set("/linux/uidMappings", ranges)?;
        let output = spec.run()?.done()?;
        ensure!(numbers(&output.stdout) == [[0, 100_000, 10], [10, 300_000, 5], [1000, 1000, 1]], "{output}");
        Ok(())
    }),
    Case::new("ids_inside_and_outside", |test| {
        let user = json!({"uid": 1000, "gid": 1001, "additionalGids": [5, 6]});
        let task = test.task_of(mapped(test, &["pause"])?.set("/process/user", user)?)?;
        let outside = fs::read_to_string(format!("/proc/{}/status", task.pid)).context("reading the status of init")?;
        for line in ["Uid:\t101000\t101000\t101000\t101000", "Gid:\t201001\t201001\t201001\t201001"] {
            ensure!(outside.contains(line), "{outside}");
        }
        ensure!(outside.contains("Groups:\t200005 200006"), "{outside}");
        // And so for what is executed in it later.
        let inside = task.exec("ids", &["id"])?.run()?.exits(0)?;
        for line in ["Uid:\t1000\t1000\t1000\t1000", "Gid:\t1001\t1001\t1001\t1001", "Groups:\t5 6 "] {
            ensure!(inside.lines().contains(&line), "{inside}");
        }
        let map = task.exec("map", &["cat", "/proc/self/uid_map"])?.run()?.exits(0)?;
        ensure!(numbers(&map.stdout) == [[0, 100_000, 65536]], "{map}");
        let init = fs::read_link(format!("/proc/{}/ns/user", task.pid)).context("reading the namespace of init")?;
        let joined = task.exec("ns", &["ns"])?.run()?.exits(0)?;
        ensure!(joined.lines().contains(&init.to_string_lossy().as_ref()), "{init:?}: {joined}");
        task.end()
    }),
    Case::new("files", files),
    Case::new("set_user_id_program", set_user_id),
    Case::new("streams_can_be_opened_again", |test| {
        let user = json!({"uid": 1000, "gid": 1000});
        let spec = mapped(test, &["write", "/proc/self/fd/1", "text"])?.set("/process/user", user.clone())?;
        let output = spec.run()?.done()?;
        ensure!(output.stdout == "text", "{output}");
        let task = test.task_of(mapped(test, &["pause"])?.set("/process/user", user)?)?;
        let output = task.exec("write", &["write", "/proc/self/fd/1", "text"])?.run()?.exits(0)?;
        ensure!(output.stdout == "text", "{output}");
        task.end()
    })
    .hybrid_only(), // runc leaves them the host's, unless io_uid and io_gid say otherwise
    Case::new("devices_are_the_host_s", |test| {
        let task = test.task_of(mapped(test, &["pause"])?)?;
        for (device, numbers) in [("null", "1:3"), ("zero", "1:5"), ("urandom", "1:9")] {
            let path = format!("/dev/{device}");
            let seen = task.exec(&format!("stat-{device}"), &["stat", &path])?.run()?.exits(0)?;
            ensure!(seen.stdout.trim_end().ends_with(numbers), "{seen}");
            let opened = task.exec(&format!("open-{device}"), &["try", "open", &path])?.run()?.exits(0)?;
            ensure!(opened.stdout == "ok\n", "{device}: {opened}");
        }
        task.end()
    }),
    Case::new("device_that_the_host_lacks", |test| {
        let devices = json!([{"path": "/dev/not-on-the-host", "type": "c", "major": 1, "minor": 5}]);
        let spec = mapped(test, &["hello"])?.set("/linux/devices", devices)?;
        spec.run()?.output()?.refused(&["/dev/not-on-the-host"]).map(drop)
    }),
    Case::new("rights_inside", |test| {
        let capability = json!(["CAP_SYS_ADMIN"]);
        let sets = json!({"bounding": capability, "effective": capability, "permitted": capability});
        let spec = mapped(test, &["pause"])?.set("/process/capabilities", sets)?;
        let task = test.task_of(spec)?;
        for (what, result) in [("mount", "ok\n"), ("sethostname", "ok\n"), ("mknod", "Operation not permitted\n")] {
            let output = task.exec(what, &["try", what])?.run()?.exits(0)?;
            ensure!(output.stdout == result, "{what}: {output}");
        }
        task.end()
    }),
    Case::new("masks_and_read_only", |test| {
        let paths = ["/proc/timer_list", "/proc/keys"];
        let spec = mapped(test, &["pause"])?.set("/linux/maskedPaths", json!(paths))?;
        let spec = spec.set("/linux/readonlyPaths", json!(["/proc/sys"]))?.set("/root/readonly", json!(true))?;
        let task = test.task_of(spec)?;
        for (index, path) in paths.iter().enumerate() {
            let seen = task.exec(&format!("masked-{index}"), &["stat", path])?.run()?.exits(0)?;
            ensure!(seen.stdout.trim_end().ends_with("1:3"), "{path}: {seen}");
        }
        for (index, path) in ["/proc/sys/net/ipv4/ip_forward", "/file"].iter().enumerate() {
            let refused = task.exec(&format!("read-only-{index}"), &["write", path, "0"])?.run()?;
            ensure!(refused.stderr.contains("Read-only file system"), "{path}: {refused}");
        }
        task.end()
    }),
    Case::new("sysctl_hostname_and_oom_score", |test| {
        let spec = mapped(test, &["pause"])?.set("/linux/sysctl", json!({"net.ipv4.ip_forward": "1"}))?;
        let spec = spec.set("/hostname", json!("some-host"))?.set("/process/oomScoreAdj", json!(567))?;
        let task = test.task_of(spec)?;
        for (id, arguments, expected) in [
            ("sysctl", ["cat", "/proc/sys/net/ipv4/ip_forward"], "1\n"),
            ("hostname", ["cat", "/proc/sys/kernel/hostname"], "some-host\n"),
            ("score", ["cat", "/proc/1/oom_score_adj"], "567\n"),
            ("own-score", ["cat", "/proc/self/oom_score_adj"], "567\n"),
        ] {
            let output = task.exec(id, &arguments)?.run()?.exits(0)?;
            ensure!(output.stdout == expected, "{id}: {output}");
        }
        task.end()
    }),
    Case::new("terminal", |test| {
        let runc = test.runtime() == Runtime::Runc;
        // Without a devpts of its own runc makes none.
        for (uid, devpts) in [(0, true), (1000, true), (1000, false)].into_iter().filter(|(_, devpts)| *devpts || !runc)
        {
            terminal(test, uid, devpts).with_context(|| format!("of user {uid}, own devpts {devpts}"))?;
        }
        Ok(())
    }),
    Case::new("namespaces_of_the_host_joined", joined),
    Case::new("created_and_deleted", |test| {
        let task = test.created(mapped(test, &["hello"])?, |_| ())?;
        task.delete().context("Delete")?;
        task.remove()
    })
    .all(),
    Case::new("a_guest_and_an_exec", |test| {
        let task = test.task_of(mapped(test, &["pause"])?)?;
        let output = task.exec("map", &["cat", "/proc/self/gid_map"])?.run()?.exits(0)?;
        ensure!(numbers(&output.stdout) == [[0, 200_000, 65536]], "{output}");
        task.end()
    })
    .all(),
    Case::new("an_exec_outside_the_mappings", |test| {
        let task = test.task_of(mapped(test, &["pause"])?)?;
        let exec = task.exec("one", &["id"])?.set("/user", json!({"uid": 70_000, "gid": 0}))?;
        exec.add().context("Exec")?;
        let error = refused(exec.start(), Code::INVALID_ARGUMENT)?;
        ensure!(error.contains("process.user.uid: 70000"), "{error}");
        exec.delete().context("Delete")?;
        task.end()
    })
    .hybrid_only(),
    Case::new("mappings_refused", |test| {
        let range = |inside: u32, outside: u32| json!({"containerID": inside, "hostID": outside, "size": 100});
        for (field, list) in [
            ("uidMappings", json!([])),
            ("gidMappings", json!([])),
            ("uidMappings", json!([range(1, 1000)])),
            ("uidMappings", json!([range(0, 1000), range(50, 5000)])),
            ("gidMappings", json!([range(0, 1000), range(100, 1050)])),
            ("gidMappings", json!([range(0, u32::MAX - 10)])),
        ] {
            let spec = mapped(test, &["hello"])?.set(&format!("/linux/{field}"), list.clone())?;
            let output = spec.run()?.output()?;
            output.refused(&[field]).with_context(|| format!("linux.{field} = {list}"))?;
        }
        Ok(())
    })
    .hybrid_only(), // runc's words name no field
];

/// A spec with a user namespace and one range of ids.
pub fn mapped<'a>(test: &Test<'a>, arguments: &[&str]) -> Result<Spec<'a>> {
    let mut spec = test.spec(arguments)?;
    spec.value["linux"]["namespaces"].as_array_mut().context("namespaces")?.push(json!({"type": "user"}));
    let range = |host: u32| json!([{"containerID": 0, "hostID": host, "size": 65536}]);
    spec.set("/linux/uidMappings", range(UID))?.set("/linux/gidMappings", range(GID))
}

/// The lines of a map.
fn numbers(map: &str) -> Vec<Vec<u32>> {
    map.lines().map(|line| line.split_whitespace().filter_map(|word| word.parse().ok()).collect()).collect()
}

/// Made by the container's root: on the host it is the mapped one's, inside it is root's.
fn files(test: &Test) -> Result<()> {
    let shared = test.containerd.fresh_path("shared");
    fs::create_dir(&shared).with_context(|| format!("making {}", shared.display()))?;
    lchown(&shared, Some(UID), Some(GID)).context("giving it to the container")?;
    let mount = json!({"destination": "/data", "type": "bind", "source": shared, "options": ["rbind", "rw"]});
    let task = test.task_of(mapped(test, &["pause"])?.mount(mount)?)?;
    for (index, path) in ["/data/file", "/run/file", "/dev/shm/file"].iter().enumerate() {
        task.exec(&format!("write-{index}"), &["write", path, "text"])?.run()?.exits(0)?;
        let seen = task.exec(&format!("stat-{index}"), &["stat", path])?.run()?.exits(0)?;
        ensure!(seen.stdout.starts_with("100644 0 0 4 "), "{path}: {seen}");
    }
    for (index, folder) in ["/dev", "/dev/pts", "/dev/shm", "/run"].iter().enumerate() {
        let seen = task.exec(&format!("folder-{index}"), &["stat", folder])?.run()?.exits(0)?;
        ensure!(seen.stdout.contains(" 0 0 "), "{folder}: {seen}");
    }
    // The image's are nobody's, as nobody has chowned them.
    let seen = task.exec("image", &["stat", "/etc"])?.run()?.exits(0)?;
    ensure!(seen.stdout.contains(" 65534 65534 "), "{seen}");
    let file = fs::metadata(shared.join("file")).context("looking at the file from outside")?;
    ensure!((file.uid(), file.gid()) == (UID, GID), "{}:{}", file.uid(), file.gid());
    task.end()?;
    fs::remove_dir_all(&shared).context("removing the shared folder")
}

fn set_user_id(test: &Test) -> Result<()> {
    let root = test.containerd.fresh_path("rootfs");
    give(&test.containerd.rootfs("linux"), &root)?;
    let probe = root.join("bin/probe");
    fs::set_permissions(&probe, fs::Permissions::from_mode(0o4755)).context("chmod")?;
    let spec = mapped(test, &["id"])?.set("/root/path", json!(root))?;
    let spec = spec.set("/process/user", json!({"uid": 1000, "gid": 1000}))?;
    let output = spec.set("/process/noNewPrivileges", json!(false))?.run()?.done()?;
    ensure!(output.lines().contains(&"Uid:\t1000\t0\t0\t0"), "{output}");
    fs::remove_dir_all(&root).context("removing the rootfs")
}

/// A copy of a folder that belongs to the container's root.
fn give(from: &Path, to: &PathBuf) -> Result<()> {
    let own = |path: &Path| lchown(path, Some(UID), Some(GID)).with_context(|| format!("chown {}", path.display()));
    fs::create_dir(to).with_context(|| format!("making {}", to.display()))?;
    own(to)?;
    for entry in fs::read_dir(from).with_context(|| format!("listing {}", from.display()))? {
        let (from, to) = (entry.as_ref().ok().context("an entry")?.path(), to.join(entry?.file_name()));
        let kind = fs::symlink_metadata(&from).with_context(|| format!("looking at {}", from.display()))?.file_type();
        if kind.is_dir() {
            give(&from, &to)?;
        } else if kind.is_file() {
            fs::copy(&from, &to).with_context(|| format!("copying {}", from.display()))?;
            own(&to)?;
        }
    }
    Ok(())
}

/// The terminal of init, and of an exec beside it.
fn terminal(test: &Test, uid: u32, devpts: bool) -> Result<()> {
    let io = Fifos::new(test.containerd)?;
    let mut spec = mapped(test, &["wait-stdin"])?.set("/process/terminal", json!(true))?;
    spec = spec.set("/process/user", json!({"uid": uid, "gid": uid}))?;
    spec = spec.set("/process/consoleSize", json!({"height": 43, "width": 132}))?;
    if !devpts {
        without(&mut spec, "devpts")?;
    }
    let task = test.created(spec, |request| {
        request.terminal = true;
        io.name(request);
    })?;
    task.start().context("Start")?;
    io.stdout.wait_for("ready\r\n")?;
    let mut exec = task.exec("one", &["tty"])?.terminal();
    exec.spawn()?;
    exec.io()?.stdout.wait_for("size 43 132")?;
    let text = exec.io()?.stdout.text();
    let name = if devpts { "name /dev/pts/1\r\n" } else { "name " };
    for line in [name, &format!("owner {uid} mode 6"), "session leader yes", "/dev/tty ok"] {
        ensure!(text.contains(line), "no {line:?} in {text:?}");
    }
    exec.finish()?.exits(0)?;
    // That of init is at /dev/console.
    let seen = task.exec("two", &["stat", "/dev/console"])?.run()?.exits(0)?;
    ensure!(seen.stdout.contains(&format!(" {uid} ")) && seen.stdout.starts_with("206"), "{seen}");
    task.end()
}

fn without(spec: &mut Spec, fstype: &str) -> Result<()> {
    let mounts: &mut Vec<Value> = spec.value["mounts"].as_array_mut().context("the spec has mounts")?;
    mounts.retain(|mount| mount["type"] != fstype);
    Ok(())
}

/// Namespaces that the host's root owns, which nobody in the new user namespace could join.
fn joined(test: &Test) -> Result<()> {
    let first = test.task(&["pause"])?;
    // The kernel mounts sysfs only for who has the network namespace.
    let direct = test.other("second");
    let mut spec = mapped(test, &["ns"])?;
    without(&mut spec, "sysfs")?;
    let mut links = Vec::new();
    for namespace in spec.value["linux"]["namespaces"].as_array_mut().context("namespaces")? {
        for (kind, file) in [("network", "net"), ("uts", "uts")] {
            if namespace["type"] == kind {
                let path = format!("/proc/{}/ns/{file}", first.pid);
                links.push(fs::read_link(&path).with_context(|| format!("reading {path}"))?);
                namespace["path"] = json!(path);
            }
        }
    }
    spec.value["linux"]["cgroupsPath"] = json!(format!("/{}/{direct}", crate::harness::NAMESPACE));
    let second = spec.run()?.id(&direct).done()?;
    for link in links {
        ensure!(second.lines().contains(&link.to_string_lossy().as_ref()), "{link:?} was not joined: {second}");
    }
    first.end()
}
