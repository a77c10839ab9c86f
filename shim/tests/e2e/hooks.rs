//! Hooks: when each is run, where, as whom, and what it is given.
use crate::harness::fifos::Fifos;
use crate::harness::hooks::{Hooks, Record, namespaces_of};
use crate::harness::{Case, Runtime, Test};
use anyhow::{Context, Result, ensure};
use containerd_shim_protos::shim::oci::Options;
use protobuf::Message;
use protobuf::well_known_types::any::Any;
use serde_json::{Value, json};
use std::fs;

pub const CASES: &[Case] = &[
    Case::new("order", order).all(),
    Case::new("by_ctr", |test| {
        let hooks = Hooks::new(test)?;
        let spec = hooks.add(test.spec(&["hello"])?, turns(&hooks))?;
        let output = spec.run()?.done()?;
        ensure!(output.stdout.starts_with("hello from"), "{output}");
        ensure!(hooks.names()?.len() == 12, "{:?}", hooks.names()?);
        hooks.remove()
    })
    .all(),
    Case::new("state", state).all(),
    Case::new("arguments_and_environment", |test| {
        let hooks = Hooks::new(test)?;
        let records = all_records(test, &hooks)?;
        for record in &records {
            let name = &record.name;
            ensure!(record.all("env") == [&format!("HOOK={name}"), "OTHER=a b"], "{record:?}");
            ensure!(record.all("arg").len() == 1, "{record:?}");
            // runc's own are open in those that its init runs.
            ensure!(test.runtime() == Runtime::Runc || record.all("fd") == ["0", "1", "2"], "{record:?}");
        }
        hooks.remove()
    })
    .all(),
    Case::new("neither_arguments_nor_environment", |test| {
        let hooks = Hooks::new(test)?;
        // A program that does nothing and can't be told to.
        let hook = json!([{"path": "/bin/true"}, hooks.host("last", &[])]);
        let task = test.created(hooks.add(test.spec(&["pause"])?, json!({"createRuntime": hook}))?, |_| ())?;
        hooks.ran(&["last"])?;
        task.end()?;
        hooks.remove()
    })
    .all(),
    Case::new("environment_of_the_process", |test| {
        let hooks = Hooks::new(test)?;
        let mut hook = hooks.inside("inherits", &[]);
        hook.as_object_mut().context("a hook")?.remove("env");
        let spec = test.spec(&["pause"])?.set("/process/env", json!(["TWICE=first", "TWICE=last", "MORE=x"]))?;
        let task = test.task_of(hooks.add(spec, json!({"startContainer": [hook]}))?)?;
        let records = hooks.records()?;
        let env = find(&records, "inherits")?.all("env");
        ensure!(env.contains(&"MORE=x") && env.contains(&"TWICE=last") && !env.contains(&"TWICE=first"), "{records:?}");
        task.end()?;
        hooks.remove()
    })
    .all(),
    Case::new("namespaces", namespaces).all(),
    Case::new("namespaces_with_a_shared_one_of_pids", |test| {
        let hooks = Hooks::new(test)?;
        let spec = hooks.add(crate::exec::shared_pids(test, &["children", "1"])?, turns(&hooks))?;
        let task = test.task_of(spec)?;
        let records = hooks.records()?;
        let inside = find(&records, "createContainer-0")?;
        // As the container sees it, whose pids are the host's.
        ensure!(inside.state()?["pid"] == task.pid, "{inside:?}");
        let init = namespaces_of(task.pid)?;
        ensure!(inside.namespaces() == init, "{inside:?}, init has {init:?}");
        task.end()?;
        hooks.remove()
    }),
    Case::new("in_a_user_namespace", |test| {
        let hooks = Hooks::new(test)?;
        let spec = crate::user_namespace::mapped(test, &["pause"])?;
        let rootfs = spec.value["root"]["path"].clone();
        let spec = spec.set("/process/user", json!({"uid": 1000, "gid": 1000}))?;
        let task = test.task_of(hooks.add(spec, turns(&hooks))?)?;
        let (host, init) = (namespaces_of(std::process::id())?, namespaces_of(task.pid)?);
        task.end()?;
        for record in hooks.records()? {
            let (expected, uid) = match record.name.split_once('-').context("a turn and a number")?.0 {
                // The root of the namespace, as the container's mounts were made by.
                "createContainer" => (&init, "0 0 0 0"),
                "startContainer" => (&init, "1000 1000 1000 1000"),
                _ => (&host, "0 0 0 0"),
            };
            ensure!(record.namespaces() == *expected, "{record:?}, not {expected:?}");
            ensure!(record.status("Uid")? == uid, "{record:?}");
            ensure!(!record.name.starts_with("createContainer") || record.one("cwd")? == rootfs, "{record:?}");
        }
        hooks.remove()
    })
    .all(),
    Case::new("current_folder", |test| {
        let hooks = Hooks::new(test)?;
        let spec = test.spec(&["pause"])?.set("/process/cwd", json!("/data"))?;
        let rootfs = spec.value["root"]["path"].clone();
        let task = test.created(hooks.add(spec, turns(&hooks))?, |_| ())?;
        let bundle = task.bundle().display().to_string();
        task.start().context("Start")?;
        task.end()?;
        for record in hooks.records()? {
            let expected = match record.name.split_once('-').context("a turn and a number")?.0 {
                "createContainer" => rootfs.as_str().context("root.path")?,
                "startContainer" => "/data",
                // runc runs them elsewhere.
                "poststart" | "poststop" if test.runtime() == Runtime::Runc => continue,
                _ => &bundle,
            };
            ensure!(record.one("cwd")? == expected, "{record:?}");
        }
        hooks.remove()
    })
    .all(),
    Case::new("mounts_are_there", mounts).all(),
    Case::new("mounts_of_a_hook_reach_the_container", |test| {
        let hooks = Hooks::new(test)?;
        let source = hooks.path("source");
        fs::create_dir(&source).context("making a folder")?;
        fs::write(source.join("file"), "from a hook").context("writing a file")?;
        let spec = test.spec(&["cat", "/data/file"])?;
        let target = format!("{}/data", spec.value["root"]["path"].as_str().context("root.path")?);
        let source = source.display().to_string();
        // Of the container, not of the host.
        let hook = hooks.host("bind", &["bind", &source, &target]);
        let spec = hooks.add(
            spec,
            json!({"createContainer": [hook], "poststart": [hooks.host("after", &["see", &format!("{target}/file")])]}),
        )?;
        let output = spec.run()?.done()?;
        ensure!(output.stdout == "from a hook", "{output}");
        let records = hooks.records()?;
        ensure!(find(&records, "after")?.all("see").is_empty(), "the mount is on the host: {records:?}");
        hooks.remove()
    })
    .all(),
    Case::new("privileges", privileges).all(),
    Case::new("scripts", |test| {
        let hooks = Hooks::new(test)?;
        let names = ["prestart", "createRuntime", "createContainer", "poststop"];
        let mut spec = json!({});
        for name in names {
            spec[name] = json!([hooks.script(name)?]);
        }
        test.task_of(hooks.add(test.spec(&["pause"])?, spec)?)?.end()?;
        hooks.ran(&names)?;
        for record in hooks.records()? {
            ensure!(record.state()?["id"] == test.id, "{record:?}");
        }
        hooks.remove()
    })
    .all(),
    Case::new("with_a_terminal", |test| {
        let (hooks, io) = (Hooks::new(test)?, Fifos::new(test.containerd)?);
        let spec = test.spec(&["pause"])?.set("/process/terminal", json!(true))?;
        let task = test.created(hooks.add(spec, turns(&hooks))?, |request| {
            request.terminal = true;
            io.name(request);
        })?;
        task.start().context("Start")?;
        io.stdout.wait_for("ready")?;
        task.end()?;
        ensure!(hooks.names()?.len() == 12, "{:?}", hooks.names()?);
        hooks.remove()
    })
    .all(),
    Case::new("without_pivot_root", |test| {
        let hooks = Hooks::new(test)?;
        let task = test.created(hooks.add(test.spec(&["pause"])?, turns(&hooks))?, |request| {
            let options = Options { no_pivot_root: true, ..Default::default() };
            let value = options.write_to_bytes().unwrap_or_default();
            let type_url = "containerd.runc.v1.Options".to_owned();
            request.options = Some(Any { type_url, value, ..Default::default() }).into();
        })?;
        task.start().context("Start")?;
        let (records, init) = (hooks.records()?, namespaces_of(task.pid)?);
        for name in ["createContainer-0", "startContainer-0"] {
            ensure!(find(&records, name)?.namespaces() == init, "{records:?}, init has {init:?}");
        }
        task.end()?;
        ensure!(hooks.names()?.len() == 12, "{:?}", hooks.names()?);
        hooks.remove()
    })
    .all(),
    Case::new("many", |test| {
        let hooks = Hooks::new(test)?;
        let names: Vec<String> = (0..30).map(|number| format!("hook-{number}")).collect();
        let list: Vec<Value> = names.iter().map(|name| hooks.host(name, &[])).collect();
        let task = test.created(hooks.add(test.spec(&["pause"])?, json!({"createContainer": list}))?, |_| ())?;
        ensure!(hooks.names()? == names, "{:?}", hooks.names()?);
        task.end()?;
        hooks.remove()
    }),
];

pub const TURNS: [&str; 6] =
    ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];

/// Two hooks for each turn, named after it.
pub fn turns(hooks: &Hooks) -> Value {
    let mut spec = json!({});
    for turn in TURNS {
        let hook = |number: u32| {
            let name = format!("{turn}-{number}");
            if turn == "startContainer" { hooks.inside(&name, &[]) } else { hooks.host(&name, &[]) }
        };
        spec[turn] = json!([hook(0), hook(1)]);
    }
    spec
}

fn find<'a>(records: &'a [Record], name: &str) -> Result<&'a Record> {
    records.iter().find(|record| record.name == name).with_context(|| format!("{name} has not run"))
}

/// The records of a container's whole life with [`turns`].
fn all_records(test: &Test, hooks: &Hooks) -> Result<Vec<Record>> {
    test.task_of(hooks.add(test.spec(&["pause"])?, turns(hooks))?)?.end()?;
    hooks.records()
}

fn order(test: &Test) -> Result<()> {
    let hooks = Hooks::new(test)?;
    let task = test.created(hooks.add(test.spec(&["pause"])?, turns(&hooks))?, |_| ())?;
    let runs = |turns: &[&str]| -> Vec<String> {
        turns.iter().flat_map(|turn| [format!("{turn}-0"), format!("{turn}-1")]).collect()
    };
    // runc 1.1 runs them at Create.
    let poststart = hooks.names()?.contains(&"poststart-0".to_owned());
    ensure!(!poststart || test.runtime() == Runtime::Runc, "poststart hooks have run before Start");
    let without = |names: Vec<String>| -> Vec<String> {
        names.into_iter().filter(|name| !poststart || !name.starts_with("poststart")).collect()
    };
    let check = |when: &str, expected: &[&str]| {
        let ran = without(hooks.names()?);
        ensure!(ran == without(runs(expected)), "after {when}: {ran:?}");
        Ok(())
    };
    check("Create", &TURNS[..3])?;
    task.start().context("Start")?;
    check("Start", &TURNS[..5])?;
    // Only of init.
    task.exec("one", &["hello"])?.run()?.exits(0)?;
    task.kill(9).context("Kill")?;
    task.wait().context("Wait")?;
    check("the end", &TURNS[..5])?;
    task.delete().context("Delete")?;
    check("Delete", &TURNS)?;
    task.remove()?;
    hooks.remove()
}

fn state(test: &Test) -> Result<()> {
    let hooks = Hooks::new(test)?;
    let annotations = json!({"org.example.one": "1", "org.example.two": "ü \" {}"});
    let spec = test.spec(&["pause"])?.set("/annotations", annotations.clone())?;
    let task = test.task_of(hooks.add(spec, turns(&hooks))?)?;
    let (pid, bundle) = (task.pid, task.bundle().display().to_string());
    task.end()?;
    for record in hooks.records()? {
        let state = record.state()?;
        let (status, seen) = match record.name.split_once('-').context("a turn and a number")?.0 {
            "prestart" | "createRuntime" => ("creating", json!(pid)),
            "createContainer" => ("creating", json!(1)),
            "startContainer" => ("created", json!(1)),
            "poststart" => ("running", json!(pid)),
            _ => ("stopped", Value::Null),
        };
        // runc runs these before the container is started.
        let early = record.name.starts_with("poststart") && test.runtime() == Runtime::Runc;
        ensure!(early || state["status"] == status, "{record:?}");
        ensure!(state["pid"] == seen || (seen.is_null() && state["pid"] == 0), "{record:?}");
        ensure!(state["id"] == test.id && state["bundle"] == bundle, "{record:?}");
        for (key, value) in annotations.as_object().context("an object")? {
            ensure!(state["annotations"][key] == *value, "{record:?}");
        }
        let version = state["ociVersion"].as_str().context("ociVersion")?;
        ensure!(version.starts_with("1."), "{record:?}");
    }
    hooks.remove()
}

fn namespaces(test: &Test) -> Result<()> {
    let hooks = Hooks::new(test)?;
    let mut spec = hooks.add(test.spec(&["pause"])?, turns(&hooks))?;
    let list = spec.value["linux"]["namespaces"].as_array_mut().context("namespaces")?;
    if list.iter().all(|namespace| namespace["type"] != "cgroup") {
        list.push(json!({"type": "cgroup"}));
    }
    let task = test.task_of(spec)?;
    let (host, init) = (namespaces_of(std::process::id())?, namespaces_of(task.pid)?);
    let apart = |(host, init): (&String, &String)| (host == init) == host.starts_with("user:");
    ensure!(host.iter().zip(&init).all(apart), "init is not apart: {init:?}");
    task.end()?;
    for record in hooks.records()? {
        let inside = record.name.starts_with("createContainer") || record.name.starts_with("startContainer");
        let expected = if inside { &init } else { &host };
        ensure!(record.namespaces() == *expected, "{record:?}, not {expected:?}");
    }
    hooks.remove()
}

/// Before pivot_root they are at the rootfs, in sight from the container's mount namespace only.
fn mounts(test: &Test) -> Result<()> {
    let hooks = Hooks::new(test)?;
    let spec = test.spec(&["pause"])?;
    let rootfs = spec.value["root"]["path"].as_str().context("root.path")?.to_owned();
    let see = |name: &str, root: &str| {
        hooks.host(name, &["see", &format!("{root}/proc/self"), "see", &format!("{root}/run/hooks/hook")])
    };
    let inside = hooks.inside("startContainer", &["see", "/proc/self", "see", "/run/hooks/hook"]);
    let script = format!(
        "pid=$(sed 's/.*\"pid\":\\([0-9]*\\).*/\\1/'); root=/proc/$pid/root{rootfs}; test -d $root/proc/1 && \
         test -x $root/run/hooks/hook && echo hook by-pid >>{}",
        hooks.path("record").display()
    );
    let by_pid = json!({"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"]});
    let spec = hooks.add(
        spec,
        json!({
            "createRuntime": [see("createRuntime", &rootfs), by_pid],
            "createContainer": [see("createContainer", &rootfs)],
            "startContainer": [inside],
        }),
    )?;
    test.task_of(spec)?.end()?;
    hooks.ran(&["createRuntime", "by-pid", "createContainer", "startContainer"])?;
    let records = hooks.records()?;
    for (name, count) in [("createRuntime", 0), ("createContainer", 2), ("startContainer", 2)] {
        let record = find(&records, name)?;
        ensure!(record.all("see").len() == count, "{record:?}");
    }
    hooks.remove()
}

/// A hook of the image is no more than the image's program; one of the host is as the shim.
fn privileges(test: &Test) -> Result<()> {
    let hooks = Hooks::new(test)?;
    let profile = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["keyctl"], "action": "SCMP_ACT_ERRNO"}],
    });
    let spec = test
        .spec(&["pause"])?
        .set("/process/user", json!({"uid": 1000, "gid": 1000}))?
        .set("/process/noNewPrivileges", json!(true))?
        .set("/linux/seccomp", profile)?;
    let task = test.task_of(hooks.add(spec, turns(&hooks))?)?;
    let init = fs::read_to_string(format!("/proc/{}/status", task.pid)).context("reading init's status")?;
    let own = fs::read_to_string("/proc/self/status").context("reading the own status")?;
    task.end()?;
    for record in hooks.records()? {
        let like = if record.name.starts_with("startContainer") { &init } else { &own };
        for key in ["Uid", "Gid", "CapEff", "NoNewPrivs", "Seccomp"] {
            let line = like.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
            let expected = line.context("a line of the status")?.trim().replace('\t', " ");
            ensure!(record.status(key)? == expected, "{key} is not {expected:?}: {record:?}");
        }
    }
    let start = hooks.records()?;
    let start = find(&start, "startContainer-0")?;
    ensure!(start.status("Uid")? == "1000 1000 1000 1000" && start.status("Seccomp")? == "2", "{start:?}");
    hooks.remove()
}
