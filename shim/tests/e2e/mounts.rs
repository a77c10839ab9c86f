//! Mounts of every kind, with every kind of option.
use crate::harness::host::Volume;
use crate::harness::{Case, Runtime, Test};
use crate::user_namespace::mapped;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::{MetadataExt, lchown};
use std::process::Command;

pub const CASES: &[Case] = &[
    Case::new("tmpfs_has_the_mode_of_what_it_hides", |test| {
        let of_the_image = |path: &str| -> Result<String> {
            let path = test.containerd.rootfs(test.kind.image_name()).join(path);
            Ok(format!("{:o}", fs::metadata(&path).with_context(|| path.display().to_string())?.mode()))
        };
        let (tmp, data) = (of_the_image("tmp")?, of_the_image("data")?);
        ensure!(tmp != data && tmp != "41777", "tmpfs has the same by itself: {tmp} {data}");
        for (path, options, mode) in [
            ("/tmp", json!(["nosuid"]), tmp.as_str()),
            ("/data", json!(["nosuid"]), data.as_str()),
            ("/data", json!(["mode=700"]), "40700"),
            ("/new/place", json!(["nosuid"]), "41777"),
        ] {
            let spec = test.spec(&["stat", path])?.mount(tmpfs(path, options))?;
            let id = test.other(&format!("at{}-{mode}", path.replace('/', "-")));
            let output = spec.run()?.id(&id).done()?;
            ensure!(output.stdout.starts_with(mode), "{path}: {output}");
        }
        Ok(())
    })
    .hybrid_only(), // of runc 1.1 the target's mode wins
    Case::new("tmpcopyup", |test| {
        for mapped_ids in [false, true] {
            if mapped_ids && (test.runtime() == Runtime::Runc) {
                continue;
            }
            let folder = Volume::new(test.containerd)?;
            fs::create_dir_all(folder.path().join("deep/er")).context("folders")?;
            fs::write(folder.path().join("deep/er/file"), "text").context("a file")?;
            std::os::unix::fs::symlink("er/file", folder.path().join("deep/link")).context("a link")?;
            if mapped_ids {
                folder.give(100_000, 200_000)?;
            } else {
                lchown(folder.path().join("deep/er/file"), Some(5), Some(6)).context("chown")?;
            }
            let id = test.other(if mapped_ids { "mapped" } else { "plain" });
            let spec = if mapped_ids { mapped(test, &["pause"])? } else { test.spec(&["pause"])? };
            let spec = spec.set("/linux/cgroupsPath", json!(format!("/{}/{id}", crate::harness::NAMESPACE)))?;
            let spec = spec.mount(json!({"destination": "/data", "type": "bind", "source": folder.path(), "options": ["bind", "ro"]}))?;
            let spec = spec.mount(tmpfs("/data", json!(["tmpcopyup", "mode=755"])))?;
            let task = test.created_as(&id, spec)?;
            task.start().context("Start")?;
            let seen = task.exec("cat", &["cat", "/data/deep/link"])?.run()?.exits(0)?;
            ensure!(seen.stdout == "text", "{seen}");
            let seen = task.exec("stat", &["stat", "/data/deep/er/file"])?.run()?.exits(0)?;
            let owner = if mapped_ids { "100644 0 0 4 " } else { "100644 5 6 4 " };
            ensure!(seen.stdout.starts_with(owner), "{seen}");
            task.exec("write", &["write", "/data/deep/er/file", "changed"])?.run()?.exits(0)?;
            task.end()?;
            ensure!(fs::read_to_string(folder.path().join("deep/er/file")).context("the file")? == "text", "it was no copy");
        }
        Ok(())
    }),
    Case::new("tmpcopyup_of_the_image", |test| {
        let spec = test.spec(&["cat", "/etc/passwd"])?.mount(tmpfs("/etc", json!(["tmpcopyup"])))?;
        let output = spec.run()?.done()?;
        ensure!(output.stdout.contains("/bin/probe"), "{output}");
        Ok(())
    })
    .all(),
    Case::new("tmpcopyup_with_extended_attributes", |test| {
        let folder = Volume::new(test.containerd)?;
        folder.file("file", "text")?;
        // A file capability: CAP_NET_RAW, permitted and effective (capabilities(7), "File capabilities").
        let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        set_attribute(&folder.path().join("file"), "security.capability", &capability)?;
        let spec = test.spec(&["pause"])?;
        let spec = spec.mount(json!({"destination": "/data", "type": "bind", "source": folder.path(), "options": ["bind", "ro"]}))?;
        let task = test.task_of(spec.mount(tmpfs("/data", json!(["tmpcopyup", "mode=755"])))?)?;
        let path = format!("/proc/{}/root/data/file", task.pid);
        let mut value = [0; 64];
        let length = rustix::fs::getxattr(&path, "security.capability", &mut value[..]).with_context(|| path.clone())?;
        ensure!(value[..length] == capability, "{:?}", &value[..length]);
        task.end()
    })
    .hybrid_only(), // runc copies none
    Case::new("mountinfo_has_the_spec_s_order", |test| {
        let folder = Volume::new(test.containerd)?;
        let bind = |at: &str| json!({"destination": at, "type": "bind", "source": folder.path(), "options": ["rbind", "ro"]});
        let mut spec = test.spec(&["cat", "/proc/self/mountinfo"])?;
        let added = ["/data/b", "/data/c", "/data/a", "/data/d", "/data/e"];
        spec = spec.mount(tmpfs("/data", json!(["mode=755"])))?;
        for (number, at) in added.iter().enumerate() {
            spec = spec.mount(if number % 2 == 0 { bind(at) } else { tmpfs(at, json!(["mode=700", "size=1m"])) })?;
        }
        let output = spec.run()?.done()?;
        let points: Vec<&str> = output.stdout.lines().filter_map(|line| line.split(' ').nth(4)).collect();
        let place = |at: &str| points.iter().position(|point| *point == at).with_context(|| format!("{at}: {output}"));
        let default = ["/", "/proc", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue", "/sys", "/data"];
        let places = default.iter().chain(&added).map(|at| place(at)).collect::<Result<Vec<_>>>()?;
        ensure!(places.is_sorted(), "{places:?}: {output}");
        Ok(())
    })
    .all(),
    Case::new("options_of_a_file_system_on_a_bind", |test| {
        let mount = json!({"destination": "/data", "type": "bind", "source": "/etc", "options": ["rbind", "mode=755", "size=1k", "ro"]});
        flags(test, mount, &["ro"])
    }),
    Case::new("bind_attributes_are_those_named", |test| {
        let source = Mounted::new(test, "nosuid,noexec")?;
        for (options, expected) in [
            (json!(["bind"]), &["rw", "nosuid", "noexec"][..]),
            (json!(["bind", "rw"]), &["rw", "-nosuid", "-noexec"]),
            (json!(["bind", "ro", "nodev"]), &["ro", "nodev", "-nosuid", "-noexec"]),
            (json!(["bind", "exec"]), &["rw", "-noexec"]),
        ] {
            let mount = json!({"destination": "/data", "type": "bind", "source": source.0.path(), "options": options});
            flags(test, mount, expected)?;
        }
        Ok(())
    })
    .hybrid_only(), // runc knows cleared attributes from 1.2 on
    Case::new("recursive_attributes", |test| {
        let mount = json!({"destination": "/data", "type": "bind", "source": "/dev", "options": ["rbind", "rro", "rnosymfollow", "rnoatime"]});
        let output = test.spec(&["cat", "/proc/self/mountinfo"])?.mount(mount)?.run()?.done()?;
        let lines: Vec<&str> = output.stdout.lines().filter(|line| line.contains(" /data")).collect();
        ensure!(lines.len() > 1, "{output}");
        for line in lines {
            let words: Vec<&str> = line.split(' ').nth(5).unwrap_or_default().split(',').collect();
            ensure!(["ro", "nosymfollow", "noatime"].iter().all(|word| words.contains(word)), "{line}");
        }
        Ok(())
    })
    .hybrid_only(), // runc 1.1 knows no rnosymfollow
    Case::new("attributes_of_a_new_file_system", |test| {
        let options = json!(["nosymfollow", "noexec", "nodiratime", "strictatime", "iversion", "sync", "size=1m", "mode=700"]);
        let expected = ["rw", "noexec", "nodiratime", "-relatime", "-noatime"];
        flags(test, tmpfs("/data", options), &expected)
    }),
    Case::new("propagation", |test| {
        for (word, expected) in
            [("private", None), ("rshared", Some("shared:")), ("unbindable", Some("unbindable")), ("rslave", None)]
        {
            let id = test.other(word);
            let spec = test.spec(&["cat", "/proc/self/mountinfo"])?.mount(tmpfs("/data", json!([word, "mode=700"])))?;
            let output = spec.run()?.id(&id).done()?;
            let line = output.stdout.lines().find(|line| line.contains(" /data ")).context("no mount")?;
            let fields = line.split(" - ").next().unwrap_or_default();
            let is_there = expected.map_or(!fields.contains("shared:"), |expected| fields.contains(expected));
            ensure!(is_there, "{word}: {line}");
        }
        Ok(())
    }),
    Case::new("remount", |test| {
        let spec = test.spec(&["cat", "/proc/self/mountinfo"])?;
        let spec = spec.mount(tmpfs("/data", json!(["nosuid", "size=1m", "mode=700"])))?;
        let spec = spec.mount(tmpfs("/data", json!(["remount", "ro", "noexec", "size=2m"])))?;
        let output = spec.run()?.done()?;
        let lines: Vec<&str> = output.stdout.lines().filter(|line| line.contains(" /data ")).collect();
        let [line] = lines[..] else { anyhow::bail!("not one mount on /data: {output}") };
        let words: Vec<&str> = line.split(' ').nth(5).unwrap_or_default().split(',').collect();
        ensure!(words.contains(&"ro") && words.contains(&"noexec") && !words.contains(&"nosuid"), "{line}");
        ensure!(line.contains("size=2048k"), "{line}");
        Ok(())
    }),
    Case::new("read_only_dev", |test| {
        let mut spec = test.spec(&["pause"])?;
        for mount in spec.value["mounts"].as_array_mut().context("mounts")? {
            if mount["destination"] == "/dev" {
                mount["options"].as_array_mut().context("options")?.push(json!("ro"));
            }
        }
        let task = test.task_of(spec)?;
        task.exec("write", &["write", "/dev/null", "x"])?.run()?.exits(0)?;
        let refused = task.exec("make", &["write", "/dev/new", "x"])?.run()?;
        ensure!(refused.stderr.contains("Read-only file system"), "{refused}");
        task.end()
    }),
    Case::new("destination_without_a_slash", |test| {
        let spec = test.spec(&["stat", "/new/place"])?.mount(tmpfs("new/place", json!(["mode=700"])))?;
        let output = spec.run()?.done()?;
        ensure!(output.stdout.starts_with("40700"), "{output}");
        Ok(())
    }),
    Case::new("procfs_that_hides", |test| {
        let spec = test.spec(&["cat", "/proc/self/mountinfo"])?;
        let mount = json!({"destination": "/data", "type": "proc", "source": "proc", "options": ["hidepid=invisible", "subset=pid"]});
        let output = spec.mount(mount)?.run()?.done()?;
        let line = output.stdout.lines().find(|line| line.contains(" /data ")).context("no mount")?;
        ensure!(line.contains("hidepid=invisible") && line.contains("subset=pid"), "{line}");
        Ok(())
    }),
    Case::new("overlay", |test| {
        let folder = Volume::new(test.containerd)?;
        let sub = |name: &str| -> Result<String> {
            fs::create_dir(folder.path().join(name)).with_context(|| name.to_owned())?;
            Ok(folder.path().join(name).display().to_string())
        };
        let long = "x".repeat(200);
        let (one, two, upper, work) = (sub(&format!("1{long}"))?, sub(&format!("2{long}"))?, sub("upper")?, sub("work")?);
        fs::write(format!("{two}/file"), "from below").context("a file")?;
        let options = json!([format!("lowerdir={one}:{two}"), format!("upperdir={upper}"), format!("workdir={work}")]);
        let spec = test.spec(&["pause"])?.mount(json!({"destination": "/data", "type": "overlay", "source": "overlay", "options": options}))?;
        let task = test.task_of(spec)?;
        let seen = task.exec("cat", &["cat", "/data/file"])?.run()?.exits(0)?;
        ensure!(seen.stdout == "from below", "{seen}");
        task.exec("write", &["write", "/data/file", "changed"])?.run()?.exits(0)?;
        task.end()?;
        ensure!(fs::read_to_string(format!("{upper}/file")).context("the upper file")? == "changed");
        ensure!(fs::read_to_string(format!("{two}/file")).context("the lower file")? == "from below");
        Ok(())
    }),
    Case::new("mounts_refused", |test| {
        let bind = |options: Value| json!({"destination": "/data", "type": "bind", "source": "/dev", "options": options});
        let ids = json!([{"containerID": 0, "hostID": 5, "size": 7}]);
        let mut half = bind(json!(["bind"]));
        half["uidMappings"] = ids.clone();
        let mut mapped_tmpfs = tmpfs("/data", json!([]));
        mapped_tmpfs["uidMappings"] = ids.clone();
        mapped_tmpfs["gidMappings"] = ids;
        for (mount, words) in [
            (json!({"destination": "/data", "type": "bind", "source": "/no/such", "options": ["bind"]}), ["/data", "/no/such"]),
            (bind(json!(["bind", "idmap"])), ["/data", "uidMappings"]),
            (half, ["/data", "gidMappings"]),
            (mapped_tmpfs, ["/data", "only ids of a bind"]),
            (json!({"destination": "/data", "type": "proc", "options": ["tmpcopyup"]}), ["/data", "tmpcopyup"]),
            (tmpfs("/data", json!(["no-such-option"])), ["/data", "tmpfs"]),
            (tmpfs("/etc/passwd", json!(["mode=700"])), ["mounts", "/etc/passwd"]),
        ] {
            let spec = test.spec(&["hello"])?.mount(mount.clone())?;
            spec.run()?.output()?.refused(&words).with_context(|| mount.to_string())?;
        }
        Ok(())
    })
    .hybrid_only(),
    Case::new("ids_mapped", |test| {
        let folder = Volume::new(test.containerd)?;
        fs::write(folder.path().join("file"), "text").context("a file")?;
        lchown(folder.path().join("file"), Some(5), Some(6)).context("chown")?;
        let range = |host: u32| json!([{"containerID": 0, "hostID": host, "size": 1000}]);
        let mount = json!({"destination": "/data", "type": "bind", "source": folder.path(), "options": ["bind", "rw"],
            "uidMappings": range(1000), "gidMappings": range(2000)});
        let task = test.task_of(test.spec(&["pause"])?.mount(mount)?)?;
        let seen = task.exec("stat", &["stat", "/data/file"])?.run()?.exits(0)?;
        ensure!(seen.stdout.starts_with("100644 1005 2006 4 "), "{seen}");
        task.end()
    })
    .hybrid_only(), // runc 1.1 has no such mounts
    Case::new("ids_of_the_container_mapped", |test| {
        for option in ["idmap", "ridmap"] {
            let folder = Volume::new(test.containerd)?;
            fs::write(folder.path().join("file"), "text").context("a file")?;
            let mount = json!({"destination": "/data", "type": "bind", "source": folder.path(), "options": ["rbind", "rw", option]});
            let id = test.other(option);
            let spec = mapped(test, &["pause"])?.mount(mount)?;
            let task = test.created_as(&id, spec.set("/linux/cgroupsPath", json!(format!("/{}/{id}", crate::harness::NAMESPACE)))?)?;
            task.start().context("Start")?;
            let seen = task.exec("stat", &["stat", "/data/file"])?.run()?.exits(0)?;
            ensure!(seen.stdout.starts_with("100644 0 0 4 "), "{seen}");
            task.exec("write", &["write", "/data/new", "text"])?.run()?.exits(0)?;
            task.end()?;
            let made = fs::metadata(folder.path().join("new")).context("the new file")?;
            ensure!((made.uid(), made.gid()) == (0, 0), "{}:{}", made.uid(), made.gid());
        }
        Ok(())
    })
    .hybrid_only(),
    Case::new("rootfs_with_mapped_ids", |test| {
        if test.containerd.line != "2.x" {
            // An older ctr has no such flag.
            return Ok(());
        }
        let flags = ["--uidmap", "0:100000:65536", "--gidmap", "0:200000:65536", "--remap-labels"];
        let seen = test.run(&["stat", "/etc/passwd"]).flags(&flags).done()?;
        ensure!(seen.stdout.starts_with("100644 0 0 "), "{seen}");
        let seen = test.run(&["write", "/data/file", "text"]).id(&test.other("write")).flags(&flags).done()?;
        ensure!(seen.stderr.is_empty(), "{seen}");
        Ok(())
    }),
];

fn tmpfs(at: &str, options: Value) -> Value {
    json!({"destination": at, "type": "tmpfs", "source": "tmpfs", "options": options})
}

/// Whether the mount on its destination has these flags; a word with `-` in front must not be there.
fn flags(test: &Test, mount: Value, expected: &[&str]) -> Result<()> {
    let id = test.other(&test.containerd.fresh_path("flags").file_name().unwrap_or_default().to_string_lossy());
    let at = format!(" {} ", mount["destination"].as_str().unwrap_or_default());
    let output = test.spec(&["cat", "/proc/self/mountinfo"])?.mount(mount.clone())?.run()?.id(&id).done()?;
    let line = output.stdout.lines().find(|line| line.contains(&at)).context("no such mount")?;
    let words: Vec<&str> = line.split(' ').nth(5).unwrap_or_default().split(',').collect();
    for word in expected {
        let (name, is_wanted) = word.strip_prefix('-').map_or((*word, true), |word| (word, false));
        ensure!(words.contains(&name) == is_wanted, "{word}, {mount}: {line}");
    }
    Ok(())
}

/// A folder of the host's with a tmpfs on it.
struct Mounted(Volume);

impl Mounted {
    fn new(test: &Test, options: &str) -> Result<Mounted> {
        let folder = Volume::new(test.containerd)?;
        let output = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(folder.path()).output();
        let output = output.context("mount")?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(Mounted(folder))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // In a mount namespace that ends with the run.
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).output();
    }
}

fn set_attribute(path: &std::path::Path, name: &str, value: &[u8]) -> Result<()> {
    rustix::fs::setxattr(path, name, value, rustix::fs::XattrFlags::empty())
        .with_context(|| format!("setting {name} of {}", path.display()))
}
