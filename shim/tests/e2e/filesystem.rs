//! The root file system, mounts, masked and read-only paths.
use crate::harness::host::Volume;
use crate::harness::{Case, Test};
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::fs;
use std::path::PathBuf;

pub const CASES: &[Case] = &[
    Case::new("write_and_read", |test| {
        // Two runs would not share a file: the snapshot is the container's own.
        let spec = test.run(&["write", "/data/file", "text"]);
        spec.done()?;
        test.run(&["cat", "/data/file"]).output()?.refused(&["/data/file"]).map(drop)
    })
    .all(),
    Case::new("readonly_root", |test| {
        test.run(&["write", "/data/file", "text"]).flags(&["--read-only"]).output()?.refused(&["/data/file"])?;
        test.run(&["cat", "/etc/passwd"]).flags(&["--read-only"]).done().map(drop)
    })
    .all(),
    Case::new("bind_read_write", bind_read_write).all(),
    Case::new("bind_read_only", bind_read_only).all(),
    Case::new("bind_of_a_file", bind_file).all(),
    Case::new("bind_missing_target_is_made", |test| {
        let folder = Volume::new(test.containerd)?;
        folder.file("file", "text")?;
        let output = test
            .run(&["cat", "/new/place/file"])
            .flags(&["--mount", &folder.mount("/new/place", "rbind:ro")])
            .done()?;
        ensure!(output.stdout == "text", "{output}");
        Ok(())
    })
    .all(),
    Case::new("tmpfs", |test| {
        let mount = json!({"destination": "/data", "type": "tmpfs", "source": "tmpfs", "options": ["size=1m", "mode=0750", "nosuid"]});
        let output = test.spec(&["cat", "/proc/self/mountinfo"])?.mount(mount)?.run()?.done()?;
        let line = output.stdout.lines().find(|line| line.contains(" /data ")).context("no mount on /data")?;
        for word in ["nosuid", "- tmpfs tmpfs", "size=1024k", "mode=750"] {
            ensure!(line.contains(word), "no {word:?} in {line}");
        }
        Ok(())
    }),
    Case::new("tmpfs_written", |test| {
        test.run(&["write", "/data/file", "x"])
            .flags(&["--read-only", "--mount", "type=tmpfs,src=tmpfs,dst=/data,options=rw"])
            .done()
            .map(drop)
    })
    .all(),
    Case::new("mount_flags", mount_flags),
    // runc takes the parent's for the root's.
    Case::new("propagation_of_the_root", |test| {
        for (word, field) in [("rprivate", None), ("rslave", Some("master:")), ("rshared", Some("shared:"))] {
            let spec = test.spec(&["cat", "/proc/self/mountinfo"])?.set("/linux/rootfsPropagation", json!(word))?;
            let output = spec.run()?.id(&test.other(word)).done()?;
            let root =
                output.stdout.lines().find(|line| line.split(' ').nth(4) == Some("/")).context("no root mount")?;
            let optional = root.split(" - ").next().unwrap_or_default();
            match field {
                // Of a private mount above, there is nothing to be a slave of.
                Some("master:") => ensure!(!optional.contains("shared:"), "{word}: {root}"),
                Some(field) => ensure!(optional.contains(field), "{word}: {root}"),
                None => ensure!(!optional.contains("shared:") && !optional.contains("master:"), "{word}: {root}"),
            }
        }
        Ok(())
    })
    .hybrid_only(),
    Case::new("masked_paths", |test| {
        let spec = test
            .spec(&["cat", "/proc/keys"])?
            .set("/linux/maskedPaths", json!(["/proc/keys", "/proc/acpi", "/no/such"]))?;
        let output = spec.run()?.done()?;
        ensure!(output.stdout.is_empty(), "{output}");
        Ok(())
    }),
    Case::new("masked_folder", |test| {
        let spec = test.spec(&["ls", "/etc"])?.set("/linux/maskedPaths", json!(["/etc"]))?;
        let output = spec.run()?.done()?;
        ensure!(output.stdout.is_empty(), "{output}");
        Ok(())
    }),
    Case::new("readonly_paths", |test| {
        let paths = json!(["/proc/sys", "/proc/sysrq-trigger", "/no/such"]);
        let spec = test.spec(&["write", "/proc/sys/kernel/domainname", "x"])?.set("/linux/readonlyPaths", paths)?;
        spec.run()?.output()?.refused(&["Read-only file system"]).map(drop)
    }),
    Case::new("only_the_specs_mounts", only_the_specs),
    Case::new("target_through_a_symlink_lands_inside", escape),
];

fn bind_read_write(test: &Test) -> Result<()> {
    let folder = Volume::new(test.containerd)?;
    test.run(&["write", "/data/out", "from inside"]).flags(&["--mount", &folder.mount("/data", "rbind:rw")]).done()?;
    let text = fs::read_to_string(folder.path().join("out")).context("reading what the container wrote")?;
    ensure!(text == "from inside", "{text:?}");
    Ok(())
}

fn bind_read_only(test: &Test) -> Result<()> {
    let folder = Volume::new(test.containerd)?;
    folder.file("file", "from outside")?;
    let mount = folder.mount("/data", "rbind:ro");
    let output = test.run(&["cat", "/data/file"]).flags(&["--mount", &mount]).done()?;
    ensure!(output.stdout == "from outside", "{output}");
    let output = test.run(&["write", "/data/file", "changed"]).flags(&["--mount", &mount]).output()?;
    output.refused(&["/data/file"])?;
    let text = fs::read_to_string(folder.path().join("file")).context("reading the file")?;
    ensure!(text == "from outside", "a read-only mount was written to: {text:?}");
    Ok(())
}

fn bind_file(test: &Test) -> Result<()> {
    let folder = Volume::new(test.containerd)?;
    folder.file("passwd", "replaced")?;
    let mount = format!("type=bind,src={}/passwd,dst=/etc/passwd,options=bind:ro", folder.path().display());
    let output = test.run(&["cat", "/etc/passwd"]).flags(&["--mount", &mount]).done()?;
    ensure!(output.stdout == "replaced", "{output}");
    Ok(())
}

fn mount_flags(test: &Test) -> Result<()> {
    let folder = Volume::new(test.containerd)?;
    let options = ["bind", "ro", "nosuid", "nodev", "noexec", "noatime"];
    let mount = json!({"destination": "/data", "type": "bind", "source": folder.path(), "options": options});
    let output = test.spec(&["cat", "/proc/self/mountinfo"])?.mount(mount)?.run()?.done()?;
    let line = output.stdout.lines().find(|line| line.contains(" /data ")).context("no mount on /data")?;
    let flags: Vec<&str> = line.split(' ').nth(5).unwrap_or_default().split(',').collect();
    for option in &options[1..] {
        ensure!(flags.contains(option), "no {option} in {line}");
    }
    Ok(())
}

/// Nothing of the host is mounted in the container, and the old root is gone.
fn only_the_specs(test: &Test) -> Result<()> {
    let spec = test.spec(&["cat", "/proc/self/mountinfo"])?;
    let mut allowed: Vec<String> = vec!["/".to_owned()];
    for mount in spec.value["mounts"].as_array().context("the spec has mounts")? {
        allowed.push(mount["destination"].as_str().context("a mount has a destination")?.to_owned());
    }
    for list in ["maskedPaths", "readonlyPaths"] {
        for path in spec.value["linux"][list].as_array().into_iter().flatten() {
            allowed.push(path.as_str().context("a path is text")?.to_owned());
        }
    }
    let output = spec.run()?.done()?;
    for line in output.stdout.lines() {
        let point = line.split(' ').nth(4).unwrap_or_default();
        ensure!(allowed.iter().any(|path| path == point), "unexpected mount: {line}");
    }
    Ok(())
}

/// Both links of the image would lead outside if they were followed from the host's root.
fn escape(test: &Test) -> Result<()> {
    let folder = Volume::new(test.containerd)?;
    folder.file("file", "landed")?;
    let outside = PathBuf::from("/srv/landing");
    let before = outside.exists();
    for link in ["/escape", "/escape-up"] {
        let mount = folder.mount(&format!("{link}/deeper"), "rbind:ro");
        let id = test.other(link.trim_start_matches('/'));
        let output = test.run(&["cat", "/srv/landing/deeper/file"]).id(&id).flags(&["--mount", &mount]).done()?;
        ensure!(output.stdout == "landed", "{link}: {output}");
    }
    ensure!(outside.exists() == before, "{} was made on the host", outside.display());
    Ok(())
}
