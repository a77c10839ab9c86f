//! AppArmor profiles: of init, of exec'd processes, and the one that containerd's clients ask for by default.
use crate::harness::command::output;
use crate::harness::{Case, Kind, Test};
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

pub const CASES: &[Case] = &[
    Case::new("of_init_and_exec", |test| {
        let (own, other) = (Profile::load(test, "own", "")?, Profile::load(test, "other", "")?);
        let task = test.task_of(test.spec(&["pause"])?.set("/process/apparmorProfile", json!(own.name))?)?;
        confined(task.pid, &own.name)?;
        let exec = task.exec("same", &["pause"])?;
        confined(exec.spawn()?, &own.name)?;
        exec.kill(9).context("Kill")?;
        exec.finish()?;
        let exec = task.exec("other", &["pause"])?.set("/apparmorProfile", json!(other.name))?;
        confined(exec.spawn()?, &other.name)?;
        exec.kill(9).context("Kill")?;
        exec.finish()?;
        task.end()
    })
    .kinds(&[Kind::Linux, Kind::Core])
    .on_apparmor(),
    Case::new("is_enforced", |test| {
        for (rule, result) in [("", "ok\n"), ("deny /etc/passwd w,", "Permission denied\n")] {
            let profile = Profile::load(test, "own", rule)?;
            let spec = test.spec(&["try", "open", "/etc/passwd"])?;
            let output = spec.set("/process/apparmorProfile", json!(profile.name))?.run()?.done()?;
            ensure!(output.stdout == result, "{rule:?}: {output}");
        }
        Ok(())
    })
    .on_apparmor(),
    Case::new("by_default", |test| {
        let profile = Profile { name: test.id.clone() };
        let running = test.run(&["pause"]).flags(&["--apparmor-default-profile", &profile.name]).spawn()?;
        running.wait_for("ready")?;
        confined(test.pid(&test.id)?, &profile.name)?;
        test.kill(&test.id, "KILL")?;
        running.finish()?.exits(137).map(drop)
    })
    .all()
    .on_apparmor(),
    Case::new("unknown", |test| {
        let spec = test.spec(&["hello"])?.set("/process/apparmorProfile", json!("no-such-profile"))?;
        let output = spec.run()?.output()?;
        ensure!(output.code != 0 && output.stderr.contains("no-such-profile"), "{output}");
        Ok(())
    })
    .hybrid_only() // runc's error does not name it
    .on_apparmor(),
];

fn confined(pid: u32, profile: &str) -> Result<()> {
    let path = format!("/proc/{pid}/attr/apparmor/current");
    let current = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    ensure!(current == format!("{profile} (enforce)\n"), "{path} holds {current:?}");
    Ok(())
}

/// A profile in the kernel, which is removed when this is dropped.
struct Profile {
    name: String,
}

impl Profile {
    /// Loads one that allows everything but for these rules (apparmor.d(5)). Its flags are those of containerd's default: a
    /// container's files are on mounts that are not below the host's root.
    fn load(test: &Test, suffix: &str, rules: &str) -> Result<Profile> {
        let name = test.other(suffix);
        let path = test.containerd.fresh_path("profile");
        let text = format!(
            "profile \"{name}\" flags=(attach_disconnected,mediate_deleted) {{\n  file,\n  capability,\n  network,\n  \
             signal,\n  ptrace,\n  mount,\n  umount,\n  unix,\n  {rules}\n}}\n"
        );
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        output(Command::new("apparmor_parser").args(["--replace", "--skip-cache"]).arg(path), b"")?.exits(0)?;
        Ok(Profile { name })
    }
}

impl Drop for Profile {
    fn drop(&mut self) {
        let path = PathBuf::from("/sys/kernel/security/apparmor/.remove");
        if let Err(error) = fs::write(&path, &self.name) {
            eprintln!("removing the AppArmor profile {}: {error}", self.name);
        }
    }
}
