//! The rest of the spec's `linux` object: devices, cgroup mounts and paths, propagation, what the host lacks.
use crate::harness::direct::refused;
use crate::harness::{Case, NAMESPACE};
use crate::user_namespace::mapped;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use ttrpc::Code;

pub const CASES: &[Case] = &[
    Case::new("device_nodes_of_every_kind", |test| {
        let devices = json!([
            {"path": "/dev/block", "type": "b", "major": 7, "minor": 300, "fileMode": 0o640, "uid": 5, "gid": 6},
            {"path": "/dev/char", "type": "c", "major": 1, "minor": 5},
            {"path": "/dev/unbuffered", "type": "u", "major": 1, "minor": 3, "fileMode": 0o2},
            {"path": "/made/for/fifo", "type": "p", "fileMode": 0o622},
            {"path": "/dev/ptmx", "type": "c", "major": 5, "minor": 2},
        ]);
        let task = test.task_of(test.spec(&["pause"])?.set("/linux/devices", devices)?)?;
        for (path, shown) in [
            ("/dev/block", "60640 5 6 0 7:"),
            ("/dev/char", "20666 0 0 0 1:5"),
            ("/dev/unbuffered", "20002 0 0 0 1:3"),
            ("/made/for/fifo", "10622 0 0 0"),
            // In its place is the link to the container's own devpts.
            ("/dev/ptmx", "120777"),
        ] {
            let seen = task.exec(&path.replace('/', "-")[1..], &["stat", path])?.run()?.exits(0)?;
            ensure!(seen.stdout.starts_with(shown), "{path}: {seen}");
        }
        task.end()
    })
    .hybrid_only(), // runc 1.1 takes no fileMode of a "u" device as it is
    Case::new("device_rules", |test| {
        let deny = json!({"allow": false, "access": "rwm"});
        let all = json!({"allow": true, "type": "c", "major": 10, "minor": -1, "access": "rw"});
        let one = json!({"allow": false, "type": "c", "major": 10, "minor": 229, "access": "w"});
        for (name, rules, denied) in [
            ("none", json!([deny]), true),
            ("all", json!([deny, all]), false),
            ("but-one", json!([deny, all, one]), true),
            ("everything", json!([{"allow": true, "access": "rwm"}]), false),
        ] {
            let id = test.other(name);
            let devices = json!([{"path": "/dev/some", "type": "c", "major": 10, "minor": 229}]);
            let spec = test.spec(&["try", "open", "/dev/some"])?.set("/linux/devices", devices)?;
            let spec = spec.set("/linux/resources", json!({ "devices": rules }))?;
            let spec = spec.set("/linux/cgroupsPath", json!(format!("/{NAMESPACE}/{id}")))?;
            let output = spec.run()?.id(&id).output()?;
            if name == "but-one" && !Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
                // The kernel would take it and go on allowing the device.
                output.refused(&["229"])?;
                continue;
            }
            let output = output.exits(0)?;
            // Where the kernel has no such device it says so after the rules have let it pass.
            ensure!((output.stdout == "Operation not permitted\n") == denied, "{name}: {output}");
        }
        Ok(())
    }),
    Case::new("dev_of_the_host", |test| {
        let mut spec = test.spec(&["pause"])?;
        let mounts = spec.value["mounts"].as_array_mut().context("mounts")?;
        mounts.retain(|mount| !mount["destination"].as_str().unwrap_or_default().starts_with("/dev"));
        mounts.push(json!({"destination": "/dev", "type": "bind", "source": "/dev", "options": ["rbind"]}));
        let spec =
            spec.set("/linux/devices", json!([{"path": "/dev/not-made", "type": "c", "major": 1, "minor": 5}]))?;
        let task = test.task_of(spec)?;
        let seen = task.exec("null", &["stat", "/dev/null"])?.run()?.exits(0)?;
        ensure!(seen.stdout.starts_with("20666"), "{seen}");
        ensure!(!Path::new("/dev/not-made").exists(), "a node was made in the host's /dev");
        task.end()
    }),
    Case::new("cgroup_mounts", |test| {
        let cgroup2 = fs::metadata("/sys/fs/cgroup/cgroup.controllers").is_ok();
        for (own, options) in [(true, json!(["ro"])), (true, json!([])), (false, json!(["ro"]))] {
            let id = test.other(&format!("own-{own}-{}", options.as_array().map_or(0, Vec::len)));
            let mut spec = test.spec(&["cat", "/proc/self/mountinfo"])?;
            let namespaces = spec.value["linux"]["namespaces"].as_array_mut().context("namespaces")?;
            namespaces.retain(|namespace| namespace["type"] != "cgroup");
            if own {
                namespaces.push(json!({"type": "cgroup"}));
            }
            let spec = without_cgroups(spec)?.set("/linux/cgroupsPath", json!(format!("/{NAMESPACE}/{id}")))?;
            let read_only = options == json!(["ro"]);
            let spec = spec.mount(
                json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": options}),
            )?;
            let output = spec.run()?.id(&id).done()?;
            let lines: Vec<&str> = output.stdout.lines().filter(|line| line.contains(" /sys/fs/cgroup/")).collect();
            let lines = if cgroup2 {
                output.stdout.lines().filter(|line| line.contains(" /sys/fs/cgroup ")).collect()
            } else {
                lines
            };
            ensure!(!lines.is_empty(), "{output}");
            for line in lines {
                let (root, flags) =
                    (line.split(' ').nth(3).unwrap_or_default(), line.split(' ').nth(5).unwrap_or_default());
                // In a namespace of its own the container's cgroup is the root; without, that it is below is to be seen.
                ensure!(!own || root == "/", "own {own}: {line}");
                ensure!(own || cgroup2 || root.ends_with(&id), "own {own}: {line}");
                ensure!(flags.split(',').any(|flag| flag == "ro") == read_only, "{line}");
            }
        }
        Ok(())
    })
    .hybrid_only(), // runc 1.1 shows the root of v1's hierarchies in another way
    Case::new("cgroup2_beside_v1", |test| {
        if fs::metadata("/sys/fs/cgroup/cgroup.controllers").is_ok() {
            return Ok(());
        }
        let mount = json!({"destination": "/data", "type": "cgroup2", "source": "cgroup2", "options": ["ro"]});
        let output = test.spec(&["cat", "/proc/self/mountinfo"])?.mount(mount)?.run()?.done()?;
        ensure!(output.stdout.lines().any(|line| line.contains(" /data ") && line.contains("- cgroup2 ")), "{output}");
        Ok(())
    }),
    Case::new("cgroup_below_another", |test| {
        // Made before, and so left behind.
        let parent = format!("{NAMESPACE}/{}-pod", test.id);
        let made = Folders::new(&parent)?;
        let spec = test.spec(&["pause"])?.set("/linux/cgroupsPath", json!(format!("/{parent}/deep/{}", test.id)))?;
        let task = test.task_of(spec)?;
        let member = fs::read_to_string(format!("/proc/{}/cgroup", task.pid)).context("the cgroup of init")?;
        ensure!(member.contains(&format!("/{parent}/deep/{}", test.id)), "{member}");
        task.end()?;
        for folder in &made.0 {
            ensure!(folder.exists() && !folder.join("deep").exists(), "{}", folder.display());
        }
        Ok(())
    })
    .hybrid_only(), // runc leaves the folders above behind
    Case::new("propagation_of_every_kind", |test| {
        for (word, shared) in [
            ("shared", true),
            ("slave", false),
            ("private", false),
            ("unbindable", false),
            ("rshared", true),
            ("rslave", false),
            ("rprivate", false),
            ("runbindable", false),
        ] {
            let id = test.other(word);
            let spec = test.spec(&["cat", "/proc/self/mountinfo"])?.set("/linux/rootfsPropagation", json!(word))?;
            let output = spec.set("/linux/cgroupsPath", json!(format!("/{NAMESPACE}/{id}")))?.run()?.id(&id).done()?;
            let root = output.stdout.lines().find(|line| line.split(' ').nth(4) == Some("/")).context("no root")?;
            let fields = root.split(" - ").next().unwrap_or_default();
            ensure!(fields.contains("shared:") == shared, "{word}: {root}");
            ensure!(fields.contains("unbindable") == word.ends_with("unbindable"), "{word}: {root}");
        }
        let spec = test.spec(&["hello"])?.set("/linux/rootfsPropagation", json!("sideways"))?;
        spec.run()?.output()?.refused(&["linux.rootfsPropagation"]).map(drop)
    })
    .hybrid_only(), // runc takes the parent's for the root's
    Case::new("masks_and_read_only_of_odd_paths", |test| {
        let masked = json!(["/proc/self/../keys", "/etc/passwd", "/etc/passwd", "/escape", "/no/such"]);
        let spec = test.spec(&["pause"])?.set("/linux/maskedPaths", masked)?;
        let task = test.task_of(spec.set("/linux/readonlyPaths", json!(["/data", "/bin/probe", "/no/such"]))?)?;
        let seen = task.exec("passwd", &["cat", "/etc/passwd"])?.run()?.exits(0)?;
        ensure!(seen.stdout.is_empty(), "{seen}");
        let refused = task.exec("data", &["write", "/data/file", "text"])?.run()?;
        ensure!(refused.stderr.contains("Read-only file system"), "{refused}");
        task.end()
    })
    .hybrid_only(),
    Case::new("sysctl_of_a_user_namespace", |test| {
        let spec = mapped(test, &["cat", "/proc/sys/user/max_uts_namespaces"])?;
        let output = spec.set("/linux/sysctl", json!({"user.max_uts_namespaces": "7"}))?.run()?.done()?;
        ensure!(output.stdout == "7\n", "{output}");
        Ok(())
    })
    .hybrid_only(),
    Case::new("sysctl_of_the_host_s_network", |test| {
        let mut spec = test.spec(&["hello"])?;
        for namespace in spec.value["linux"]["namespaces"].as_array_mut().context("namespaces")? {
            if namespace["type"] == "network" {
                namespace["path"] = json!("/proc/1/ns/net");
            }
        }
        let spec = spec.set("/linux/sysctl", json!({"net.ipv4.ip_forward": "1"}))?;
        spec.run()?.output()?.refused(&["net.ipv4.ip_forward", "host"]).map(drop)
    }),
    Case::new("cache_shares_where_there_are_none", |test| {
        let mounts = fs::read_to_string("/proc/self/mountinfo").context("the mounts")?;
        if mounts.contains(" - resctrl ") {
            return Ok(());
        }
        let direct = test.direct()?.config(&test.spec(&["hello"])?.set("/linux/intelRdt", json!({"closID": "a"}))?)?;
        let server = direct.start()?;
        let error = refused(server.create(), Code::FAILED_PRECONDITION)?;
        ensure!(error.contains("linux.intelRdt: this host has no resctrl"), "{error}");
        server.shutdown()?;
        direct.remove()
    })
    .hybrid_only(),
];

fn without_cgroups(mut spec: crate::harness::spec::Spec<'_>) -> Result<crate::harness::spec::Spec<'_>> {
    let mounts: &mut Vec<Value> = spec.value["mounts"].as_array_mut().context("mounts")?;
    mounts.retain(|mount| mount["type"] != "cgroup");
    Ok(spec)
}

/// A cgroup of the test's own in every hierarchy; removed with the test.
struct Folders(Vec<PathBuf>);

impl Folders {
    fn new(name: &str) -> Result<Folders> {
        let roots: Vec<PathBuf> = if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
            vec![PathBuf::from("/sys/fs/cgroup")]
        } else {
            let entries = fs::read_dir("/sys/fs/cgroup").context("the hierarchies")?;
            let folders = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
            folders.map(|entry| entry.path()).filter(|path| path.join("cgroup.procs").exists()).collect()
        };
        let folders = Folders(roots.iter().map(|root| root.join(name)).collect());
        for folder in &folders.0 {
            fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
        }
        Ok(folders)
    }
}

impl Drop for Folders {
    fn drop(&mut self) {
        for folder in &self.0 {
            // Another test's containers may be in the one above.
            let _ = fs::remove_dir(folder);
        }
    }
}
