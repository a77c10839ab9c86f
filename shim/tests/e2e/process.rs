//! What the spec's `process` says: arguments, environment, folder, user, capabilities, limits.
use crate::harness::case::has_apparmor;
use crate::harness::{Case, Runtime, Test};
use anyhow::{Context, Result, ensure};
use serde_json::json;

pub const CASES: &[Case] = &[
    Case::new("arguments", |test| {
        let output = test.run(&["args", "a b", "", "--flag=ü"]).done()?;
        let expected = [test.kind.program(), "args", "a b", "", "--flag=ü"];
        ensure!(output.lines() == expected, "{output}");
        Ok(())
    })
    .all(),
    Case::new("environment", |test| {
        let output = test.run(&["env"]).flags(&["--env", "NAME=a value", "--env", "EMPTY="]).done()?;
        for line in ["NAME=a value", "EMPTY=", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"] {
            ensure!(output.lines().contains(&line), "no {line:?}: {output}");
        }
        Ok(())
    })
    .all(),
    Case::new("nothing_of_the_hosts_environment", |test| {
        let spec = test.spec(&["env"])?.set("/process/env", json!(["ONLY=this"]))?;
        let output = spec.run()?.done()?;
        // runc adds the user's HOME where the spec has none.
        ensure!(output.lines().iter().all(|line| ["ONLY=this", "HOME=/root"].contains(line)), "{output}");
        Ok(())
    }),
    Case::new("environment_with_a_variable_twice", |test| {
        let spec = test.spec(&["env"])?.set("/process/env", json!(["A=first", "B=b", "A=last", "HOME=/"]))?;
        let output = spec.run()?.done()?;
        ensure!(output.lines() == ["B=b", "A=last", "HOME=/"], "{output}");
        Ok(())
    }),
    Case::new("cwd", |test| {
        let output = test.run(&["pwd"]).flags(&["--cwd", "/data"]).done()?;
        ensure!(output.stdout == "/data\n", "{output}");
        Ok(())
    }),
    Case::new("cwd_is_made", |test| {
        let output = test.run(&["pwd"]).id(&test.other("pwd")).flags(&["--cwd", "/data/new/folder"]).done()?;
        ensure!(output.stdout == "/data/new/folder\n", "{output}");
        let user = json!({"uid": 1000, "gid": 1000});
        let spec = test.spec(&["stat", "."])?.set("/process/user", user)?.set("/process/cwd", json!("/tmp/of/root"))?;
        let scratch = json!({"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["mode=1777"]});
        let output = spec.mount(scratch)?.run()?.id(&test.other("stat")).done()?;
        ensure!(output.stdout.starts_with("40755 0 0 "), "{output}");
        Ok(())
    }),
    Case::new("cwd_that_only_root_may_enter", |test| {
        let scratch = json!({"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["mode=0700"]});
        let spec = test.spec(&["hello"])?.set("/process/user", json!({"uid": 1000, "gid": 1000}))?.mount(scratch)?;
        let task = test
            .task_of(spec.set("/process/args", json!(["/bin/probe", "pause"]))?.set("/process/cwd", json!("/tmp"))?)?;
        task.exec("one", &["hello"])?.run()?.exits(0)?;
        task.end()
    }),
    Case::new("cwd_that_is_no_folder", |test| {
        let output = test.run(&["pwd"]).flags(&["--cwd", "/bin/probe"]).output()?;
        ensure!(output.code != 0, "{output}");
        if test.runtime() == Runtime::Hybrid {
            output.refused(&["process.cwd", "not a directory"])?;
        }
        Ok(())
    }),
    Case::new("program_found_in_path", |test| {
        let spec = test.spec(&[])?.set("/process/args", json!(["probe", "hello"]))?;
        let spec = spec.set("/process/env", json!(["PATH=/nowhere:/bin"]))?;
        let output = spec.run()?.done()?;
        ensure!(output.stdout == "hello from Linux\n", "{output}");
        Ok(())
    }),
    Case::new("program_relative_to_cwd", |test| {
        let spec = test.spec(&[])?.set("/process/args", json!(["./probe", "hello"]))?;
        spec.set("/process/cwd", json!("/bin"))?.run()?.done().map(drop)
    }),
    Case::new("user_and_groups", user),
    Case::new("root_by_default", |test| {
        let ids = Ids::of(test.run(&["id"]).done()?.stdout);
        ensure!(ids.get("Uid:")? == "0 0 0 0" && ids.get("Gid:")? == "0 0 0 0", "{}", ids.0);
        Ok(())
    }),
    Case::new("capabilities_by_default", default_capabilities),
    Case::new("capabilities_five_sets", five_sets),
    Case::new("capabilities_dropped_for_a_user", dropped_for_a_user),
    Case::new("capabilities_that_nobody_knows", |test| {
        let sets = json!({"bounding": ["CAP_CHOWN", "CAP_NOT_YET"], "effective": ["CAP_CHOWN", "CAP_NOT_YET"],
            "permitted": ["CAP_CHOWN"], "ambient": ["CAP_CHOWN"]});
        let task = test.task_of(test.spec(&["pause"])?.set("/process/capabilities", sets)?)?;
        let ids = Ids::of(task.exec("one", &["id"])?.run()?.exits(0)?.stdout);
        ensure!(ids.mask("CapEff:")? == CAP_CHOWN && ids.mask("CapAmb:")? == 0, "{}", ids.0);
        task.end()
    }),
    Case::new("no_new_privileges", |test| {
        let ids = Ids::of(test.run(&["id"]).done()?.stdout);
        ensure!(ids.get("NoNewPrivs:")? == "1", "{}", ids.0);
        Ok(())
    }),
    Case::new("new_privileges_allowed", |test| {
        let ids = Ids::of(test.run(&["id"]).flags(&["--allow-new-privs"]).done()?.stdout);
        ensure!(ids.get("NoNewPrivs:")? == "0", "{}", ids.0);
        Ok(())
    }),
    Case::new("signals_are_default", |test| {
        let ids = Ids::of(test.run(&["id"]).done()?.stdout);
        // Signals 1 to 31; what libc and Go keep for themselves comes after.
        ensure!(ids.mask("SigIgn:")? & 0x7fff_ffff == 0 && ids.mask("SigBlk:")? == 0, "{}", ids.0);
        Ok(())
    }),
    Case::new("rlimits", rlimits),
    Case::new("rlimit_of_few_descriptors", |test| {
        let limits = json!([{"type": "RLIMIT_NOFILE", "soft": 3, "hard": 3}]);
        let output = test.spec(&["ulimit", "nofile"])?.set("/process/rlimits", limits)?.run()?.done()?;
        ensure!(output.stdout == "3 3\n", "{output}");
        Ok(())
    })
    .hybrid_only(), // runc's own init needs more
    Case::new("rlimit_without_a_limit", |test| {
        let limits = json!([{"type": "RLIMIT_CORE", "soft": u64::MAX, "hard": u64::MAX}]);
        let output = test.spec(&["ulimit", "core"])?.set("/process/rlimits", limits)?.run()?.done()?;
        ensure!(output.stdout == format!("{0} {0}\n", u64::MAX), "{output}");
        Ok(())
    }),
    Case::new("words_of_other_platforms", |test| {
        let spec = test.spec(&["hello"])?.set("/process/commandLine", json!("hello"))?;
        spec.set("/process/user/username", json!("somebody"))?.run()?.done().map(drop)
    }),
    Case::new("apparmor_profile", apparmor),
    Case::new("labels_without_selinux", |test| {
        if std::path::Path::new("/sys/fs/selinux/enforce").exists() {
            return Ok(());
        }
        for field in ["/process/selinuxLabel", "/linux/mountLabel"] {
            let label = json!("system_u:object_r:container_file_t:s0:c1,c2");
            let output = test.spec(&["hello"])?.set(field, label)?.run()?.output()?;
            ensure!(output.code != 0, "{output}");
            if test.runtime() == Runtime::Hybrid {
                output.refused(&[&field[1..].replace('/', "."), "SELinux"])?;
            }
        }
        Ok(())
    }),
    Case::new("umask_by_default", |test| {
        let output = test.run(&["umask"]).done()?;
        ensure!(output.stdout == "0022\n", "{output}");
        Ok(())
    }),
    Case::new("umask_of_the_user", |test| {
        let output = test.spec(&["umask"])?.set("/process/user/umask", json!(0o077))?.run()?.done()?;
        ensure!(output.stdout == "0077\n", "{output}");
        Ok(())
    }),
    Case::new("oom_score_out_of_range", |test| {
        let output = test.spec(&["hello"])?.set("/process/oomScoreAdj", json!(1001))?.run()?.output()?;
        ensure!(output.code != 0, "{output}");
        if test.runtime() == Runtime::Hybrid {
            output.refused(&["process.oomScoreAdj"])?;
        }
        Ok(())
    }),
    Case::new("oom_score", |test| {
        let spec = test.spec(&["cat", "/proc/self/oom_score_adj"])?.set("/process/oomScoreAdj", json!(321))?;
        let output = spec.run()?.done()?;
        ensure!(output.stdout == "321\n", "{output}");
        Ok(())
    }),
];

/// What `probe id` prints.
struct Ids(String);

impl Ids {
    fn of(text: String) -> Ids {
        Ids(text)
    }

    /// The values of one line of /proc/self/status, separated by single spaces.
    fn get(&self, name: &str) -> Result<String> {
        let line = self.0.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("no {name}"))?;
        Ok(line.split_whitespace().collect::<Vec<_>>().join(" "))
    }

    fn mask(&self, name: &str) -> Result<u64> {
        let text = self.get(name)?;
        u64::from_str_radix(&text, 16).with_context(|| format!("{name} {text}"))
    }
}

const CAP_CHOWN: u64 = 1 << 0;
const CAP_KILL: u64 = 1 << 5;
const CAP_NET_BIND_SERVICE: u64 = 1 << 10;
const CAP_SYS_ADMIN: u64 = 1 << 21;

fn user(test: &Test) -> Result<()> {
    let spec = test.spec(&["id"])?;
    let spec = spec.set("/process/user", json!({"uid": 1000, "gid": 1001, "additionalGids": [2000, 3000]}))?;
    let ids = Ids::of(spec.run()?.done()?.stdout);
    ensure!(ids.get("Uid:")? == "1000 1000 1000 1000", "{}", ids.0);
    ensure!(ids.get("Gid:")? == "1001 1001 1001 1001", "{}", ids.0);
    let groups = ids.get("Groups:")?;
    ensure!(groups == "2000 3000", "groups {groups}");
    Ok(())
}

fn default_capabilities(test: &Test) -> Result<()> {
    let ids = Ids::of(test.run(&["id"]).done()?.stdout);
    let effective = ids.mask("CapEff:")?;
    ensure!(effective & CAP_CHOWN != 0 && effective & CAP_SYS_ADMIN == 0, "{}", ids.0);
    ensure!(ids.mask("CapBnd:")? == effective && ids.mask("CapPrm:")? == effective, "{}", ids.0);
    ensure!(ids.mask("CapAmb:")? == 0, "{}", ids.0);
    Ok(())
}

fn five_sets(test: &Test) -> Result<()> {
    let capabilities = json!({
        "bounding": ["CAP_CHOWN", "CAP_KILL", "CAP_NET_BIND_SERVICE"],
        "effective": ["CAP_NET_BIND_SERVICE"],
        "permitted": ["CAP_KILL", "CAP_NET_BIND_SERVICE"],
        "inheritable": ["CAP_NET_BIND_SERVICE"],
        "ambient": ["CAP_NET_BIND_SERVICE"],
    });
    let spec = test.spec(&["id"])?.set("/process/capabilities", capabilities)?;
    // Not root: execve would give root all of the bounding set (capabilities(7)).
    let spec = spec.set("/process/user", json!({"uid": 1000, "gid": 1000}))?;
    let ids = Ids::of(spec.run()?.done()?.stdout);
    ensure!(ids.mask("CapBnd:")? == CAP_CHOWN | CAP_KILL | CAP_NET_BIND_SERVICE, "{}", ids.0);
    for set in ["CapEff:", "CapPrm:", "CapInh:", "CapAmb:"] {
        // Of a user's permitted set only the ambient part outlives execve.
        ensure!(ids.mask(set)? == CAP_NET_BIND_SERVICE, "{set} {}", ids.0);
    }
    Ok(())
}

fn dropped_for_a_user(test: &Test) -> Result<()> {
    let spec = test.spec(&["id"])?.set("/process/user", json!({"uid": 1000, "gid": 1000}))?;
    let ids = Ids::of(spec.run()?.done()?.stdout);
    ensure!(ids.mask("CapEff:")? == 0 && ids.mask("CapPrm:")? == 0, "{}", ids.0);
    Ok(())
}

/// The profile of init, which containerd loads, and that of an exec'd process; refused where there is no AppArmor.
fn apparmor(test: &Test) -> Result<()> {
    const PROFILE: &str = "hybrid-test";
    if !has_apparmor() {
        let spec = test.spec(&["hello"])?.set("/process/apparmorProfile", json!(PROFILE))?;
        let output = spec.run()?.output()?;
        ensure!(output.code != 0, "{output}");
        if test.runtime() == Runtime::Hybrid {
            output.refused(&["process.apparmorProfile", "AppArmor"])?;
        }
        return Ok(());
    }
    let shown = format!("{PROFILE} (enforce)\n");
    let run = test.run(&["cat", "/proc/self/attr/current"]).id(&test.other("init"));
    let output = run.flags(&["--apparmor-default-profile", PROFILE]).done()?;
    ensure!(output.stdout == shown, "{output}");
    let task = test.task_of(test.spec(&["pause"])?.set("/process/apparmorProfile", json!(PROFILE))?)?;
    let output = task.exec("like", &["cat", "/proc/self/attr/current"])?.run()?.exits(0)?;
    ensure!(output.stdout == shown, "{output}");
    let other = task.exec("other", &["cat", "/proc/self/attr/current"])?;
    let output = other.set("/apparmorProfile", json!("unconfined"))?.run()?.exits(0)?;
    ensure!(output.stdout == "unconfined\n", "{output}");
    task.end()
}

fn rlimits(test: &Test) -> Result<()> {
    let limits = json!([
        {"type": "RLIMIT_NOFILE", "soft": 333, "hard": 444},
        {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
    ]);
    for (name, expected) in [("nofile", "333 444\n"), ("core", "0 0\n")] {
        let output = test.spec(&["ulimit", name])?.set("/process/rlimits", limits.clone())?.run()?.done()?;
        ensure!(output.stdout == expected, "{name}: {output}");
    }
    // runc too refuses a soft limit above the hard one, as the kernel does.
    let wrong = json!([{"type": "RLIMIT_NOFILE", "soft": 500, "hard": 400}]);
    let output = test.spec(&["ulimit", "nofile"])?.set("/process/rlimits", wrong)?.run()?.output()?;
    ensure!(output.code != 0, "{output}");
    if test.runtime() == Runtime::Hybrid {
        output.refused(&[&test.id, "RLIMIT_NOFILE"])?;
    }
    Ok(())
}
