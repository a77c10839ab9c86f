//! Seccomp: what each action, flag, architecture and operator of a profile does, and whom notifications go to.
use crate::harness::seccomp::Agent;
use crate::harness::{Case, Kind, Runtime, Test};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

pub const CASES: &[Case] = &[
    Case::new("actions", actions),
    Case::new("default_action", |test| {
        // What the program needs, and the call that is looked at.
        let profile = json!({"defaultAction": "SCMP_ACT_LOG", "syscalls": rule("SCMP_ACT_ERRNO", json!([]))});
        answers(test, profile, &["call", "umask", "0"], "Operation not permitted")?;
        let profile = json!({"defaultAction": "SCMP_ACT_TRACE", "syscalls": rule("SCMP_ACT_ALLOW", json!([]))});
        // Nobody traces it.
        let output = test.spec(&["hello"])?.set("/linux/seccomp", profile)?.run()?.output()?;
        ensure!(output.code != 0, "{output}");
        Ok(())
    }),
    Case::new("errno_of_another_action", |test| {
        let mut rule = rule("SCMP_ACT_ALLOW", json!([]));
        rule[0]["errnoRet"] = json!(1);
        let profile = json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": rule});
        test.spec(&["hello"])?.set("/linux/seccomp", profile)?.run()?.output()?.refused(&["errnoRet"]).map(drop)
    })
    .hybrid_only(), // The spec has it so; runc ignores it
    Case::new("operators", operators),
    Case::new("conditions_on_one_argument", |test| {
        let args = json!([
            {"index": 0, "value": 1, "op": "SCMP_CMP_EQ"},
            {"index": 0, "value": 7, "op": "SCMP_CMP_EQ"},
        ]);
        for (value, refused) in [("1", true), ("7", true), ("2", false)] {
            let profile = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rule("SCMP_ACT_ERRNO", args.clone())});
            answers(test, profile, &["call", "umask", value], if refused { "Operation not permitted" } else { "ok" })?;
        }
        Ok(())
    }),
    Case::new("flags", |test| {
        for flags in [
            json!([]),
            json!(["SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"]),
        ] {
            let profile = json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": flags,
                "syscalls": rule("SCMP_ACT_ERRNO", json!([]))});
            answers(test, profile, &["call", "umask", "0"], "Operation not permitted")?;
        }
        let profile = json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_NEW"]});
        let output = test.spec(&["hello"])?.set("/linux/seccomp", profile)?.run()?.output()?;
        ensure!(output.code != 0, "{output}");
        Ok(())
    })
    .hybrid_only(), // runc since 1.2
    Case::new("architectures", architectures),
    Case::new("newer_calls_are_not_implemented", newer_calls),
    Case::new("no_rules", |test| {
        let profile = json!({"defaultAction": "SCMP_ACT_LOG"});
        answers(test, profile, &["call", "umask", "0"], "ok")?;
        let profile = json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 5});
        let output = test.spec(&["hello"])?.set("/linux/seccomp", profile)?.run()?.output()?;
        ensure!(output.code != 0, "{output}");
        Ok(())
    }),
    Case::new("no_new_privileges_and_few_calls", |test| few_calls(test, true)).hybrid_only(), // runc itself needs more
    Case::new("new_privileges_and_few_calls", |test| few_calls(test, false)).hybrid_only(),
    Case::new("notifications_that_can_be_killed", |test| {
        let agent = Agent::listen(test)?;
        let mut profile = notifying(&json!(agent.path()), "umask");
        profile["flags"] = json!(["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]);
        let task = test.task_of(test.spec(&["call", "umask", "0"])?.set("/linux/seccomp", profile)?)?;
        let handed = agent.accept()?;
        // Nobody answers.
        handed.receive(task.pid)?;
        task.end()
    })
    .hybrid_only(), // runc since 1.2
    Case::new("notifications", |test| notifications(test, true)).all(),
    Case::new("notifications_with_new_privileges", |test| notifications(test, false)),
    Case::new("notifications_of_an_exec", notifications_of_an_exec),
    Case::new("notifications_without_an_agent", |test| {
        let folder = Agent::listen(test)?;
        let path = folder.path().to_owned();
        drop(folder);
        for (profile, field) in [
            (notifying(&json!(path), "umask"), "linux.seccomp.listenerPath"),
            (notifying(&json!(""), "umask"), "linux.seccomp.listenerPath"),
            (notifying(&json!(path), "write"), "SCMP_ACT_NOTIFY"),
        ] {
            let output = test.spec(&["hello"])?.set("/linux/seccomp", profile)?.run()?.output()?;
            ensure!(output.code != 0, "{output}");
            if test.runtime() == Runtime::Hybrid {
                output.refused(&[field])?;
            }
        }
        // Without notifications nobody is told.
        let profile = json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": path,
            "syscalls": rule("SCMP_ACT_ERRNO", json!([]))});
        answers(test, profile, &["call", "umask", "0"], "Operation not permitted")
    }),
];

/// A rule for umask(2), which every process may call.
fn rule(action: &str, args: Value) -> Value {
    json!([{"names": ["umask"], "action": action, "args": args}])
}

/// Runs the probe under a profile and compares what it prints.
fn answers(test: &Test, profile: Value, arguments: &[&str], answer: &str) -> Result<()> {
    let output = test.spec(arguments)?.set("/linux/seccomp", profile.clone())?.run()?.done()?;
    ensure!(output.stdout == format!("{answer}\n"), "{profile} {arguments:?}: not {answer:?}: {output}");
    Ok(())
}

fn actions(test: &Test) -> Result<()> {
    let profile = |rules| json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules});
    for (action, errno, answer) in [
        ("SCMP_ACT_ERRNO", Some(28), "No space left on device"),
        ("SCMP_ACT_ERRNO", None, "Operation not permitted"),
        ("SCMP_ACT_LOG", None, "ok"),
        ("SCMP_ACT_ALLOW", None, "ok"),
        // Without a tracer the call is as if the kernel hadn't it (seccomp(2)).
        ("SCMP_ACT_TRACE", Some(7), "Function not implemented"),
    ] {
        let mut rules = rule(action, json!([]));
        if let Some(errno) = errno {
            rules[0]["errnoRet"] = json!(errno);
        }
        answers(test, profile(rules), &["call", "umask", "0"], answer)?;
    }
    for action in ["SCMP_ACT_KILL", "SCMP_ACT_KILL_THREAD", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_TRAP"] {
        let profile = profile(rule(action, json!([])));
        let output = test.spec(&["call", "umask", "0"])?.set("/linux/seccomp", profile)?.run()?.output()?;
        // SIGSYS.
        ensure!(output.code == 128 + 31, "{action}: {output}");
    }
    Ok(())
}

fn operators(test: &Test) -> Result<()> {
    for (op, value, two, hits, misses) in [
        ("SCMP_CMP_EQ", 5, None, &["5"][..], &["4", "6"][..]),
        ("SCMP_CMP_NE", 5, None, &["4", "6"], &["5"]),
        ("SCMP_CMP_LT", 5, None, &["4"], &["5", "6"]),
        ("SCMP_CMP_LE", 5, None, &["4", "5"], &["6"]),
        ("SCMP_CMP_GT", 5, None, &["6"], &["5", "4"]),
        ("SCMP_CMP_GE", 5, None, &["5", "6"], &["4"]),
        ("SCMP_CMP_MASKED_EQ", 6, Some(4), &["4", "5"], &["6", "2"]),
    ] {
        let mut arg = json!({"index": 0, "value": value, "op": op});
        if let Some(two) = two {
            arg["valueTwo"] = json!(two);
        }
        let profile = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rule("SCMP_ACT_ERRNO", json!([arg]))});
        for (values, answer) in [(hits, "Operation not permitted"), (misses, "ok")] {
            for value in values {
                answers(test, profile.clone(), &["call", "umask", value], answer)?;
            }
        }
    }
    Ok(())
}

/// A profile holds for the architectures that it names, and the host's own; the calls of others are the end.
fn architectures(test: &Test) -> Result<()> {
    if !cfg!(target_arch = "x86_64") {
        return Ok(());
    }
    // umask(2) of 32-bit programs.
    const CALL: [&str; 3] = ["call32", "60", "0"];
    let profile = |architectures| {
        json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": architectures,
            "syscalls": rule("SCMP_ACT_ERRNO", json!([]))})
    };
    let both = profile(json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]));
    answers(test, both.clone(), &CALL, "Operation not permitted")?;
    answers(test, both, &["call", "umask", "0"], "Operation not permitted")?;
    let one = profile(json!(["SCMP_ARCH_X86_64"]));
    let output = test.spec(&CALL)?.set("/linux/seccomp", one)?.run()?.output()?;
    ensure!(output.code == 128 + 31, "{output}");
    let unknown = profile(json!(["SCMP_ARCH_PDP11"]));
    let output = test.spec(&CALL)?.set("/linux/seccomp", unknown)?.run()?.output()?;
    ensure!(output.code != 0, "{output}");
    Ok(())
}

/// glibc takes ENOSYS, but not EPERM, for "use the older call".
fn newer_calls(test: &Test) -> Result<()> {
    for (number, answer) in [("9999", "Function not implemented\n"), ("250", "Operation not permitted\n")] {
        if number == "250" && !cfg!(target_arch = "x86_64") {
            continue; // keyctl(2)
        }
        let run = test.run(&["call", number, "0"]).id(&test.other(number)).flags(&["--seccomp"]);
        let output = run.done()?;
        ensure!(output.stdout == answer, "{number}: {output}");
    }
    Ok(())
}

/// What the program itself needs is enough for a profile. Where no_new_privs does not let it be loaded last, CAP_SYS_ADMIN is
/// dropped after it.
fn few_calls(test: &Test, no_new_privileges: bool) -> Result<()> {
    let mut names = json!([
        "execve",
        "read",
        "write",
        "brk",
        "arch_prctl",
        "set_tid_address",
        "set_robust_list",
        "rseq",
        "prlimit64",
        "readlinkat",
        "readlink",
        "getrandom",
        "mprotect",
        "mmap",
        "fstat",
        "newfstatat",
        "exit_group"
    ]);
    if !no_new_privileges {
        names.as_array_mut().context("names")?.push(json!("capset"));
    }
    let profile =
        json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": names, "action": "SCMP_ACT_ALLOW"}]});
    let spec = |arguments: &[&str]| {
        let spec = test.spec(arguments)?.set("/linux/seccomp", profile.clone())?;
        spec.set("/process/noNewPrivileges", json!(no_new_privileges))
    };
    let output = spec(&["hello"])?.run()?.done()?;
    ensure!(output.stdout == "hello from Linux\n", "{output}");
    let task = test.created(spec(&["pause"])?, |_| ())?;
    // Loading it is behind a created process that has new privileges.
    let status = std::fs::read_to_string(format!("/proc/{}/status", task.pid)).context("status")?;
    let of = |key: &str| status.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default().trim();
    ensure!((of("Seccomp:") == "2") != no_new_privileges, "{status}");
    let sets = u64::from_str_radix(of("CapPrm:"), 16).context("CapPrm")?;
    ensure!(sets & 1 << 21 == 0, "CAP_SYS_ADMIN: {status}");
    task.start().context("Start")?;
    task.exec("one", &["hello"])?.run()?.exits(0)?;
    task.end()
}

fn notifying(path: &Value, call: &str) -> Value {
    json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "listenerPath": path,
        "listenerMetadata": "opaque words",
        "syscalls": [{"names": [call], "action": "SCMP_ACT_NOTIFY"}],
    })
}

/// The agent is told who the process is when the container is created, and answers for the kernel.
fn notifications(test: &Test, no_new_privileges: bool) -> Result<()> {
    let agent = Agent::listen(test)?;
    let spec = test
        .spec(&["call", "umask", "0"])?
        .set("/linux/seccomp", notifying(&json!(agent.path()), "umask"))?
        .set("/process/noNewPrivileges", json!(no_new_privileges))?
        .set("/annotations", json!({"a.key": "its value"}))?;
    let task = test.created(spec, |_| ())?;
    let handed = agent.accept()?;
    let state = &handed.state;
    ensure!(state["fds"] == json!(["seccompFd"]) && state["metadata"] == "opaque words", "{state}");
    ensure!(state["pid"] == task.pid && state["state"]["pid"] == task.pid, "{state}");
    ensure!(state["state"]["status"] == "creating" && state["state"]["id"] == json!(task.id), "{state}");
    ensure!(state["state"]["bundle"] == json!(task.bundle()), "{state}");
    ensure!(state["state"]["annotations"]["a.key"] == "its value", "{state}");
    ensure!(state["ociVersion"].is_string() && state["state"]["ociVersion"].is_string(), "{state}");
    task.start().context("Start")?;
    if test.kind == Kind::Linux {
        // ENOSPC in place of what the kernel would say.
        handed.answer(task.pid, 28)?;
        task.wait().context("Wait")?;
        ensure!(task.stdout()? == "No space left on device\n", "{}", task.stdout()?);
    }
    task.end()
}

fn notifications_of_an_exec(test: &Test) -> Result<()> {
    let agent = Agent::listen(test)?;
    let spec = test.spec(&["pause"])?.set("/linux/seccomp", notifying(&json!(agent.path()), "umask"))?;
    let task = test.task_of(spec)?;
    let of_init = agent.accept()?;
    ensure!(of_init.state["pid"] == task.pid, "{}", of_init.state);
    let mut exec = task.exec("one", &["call", "umask", "0"])?;
    let pid = exec.spawn()?;
    let handed = agent.accept()?;
    ensure!(handed.state["pid"] == pid && handed.state["state"]["pid"] == task.pid, "{}", handed.state);
    ensure!(handed.state["state"]["status"] == "running", "{}", handed.state);
    handed.answer(pid, 28)?;
    exec.end_stdin()?;
    let output = exec.finish()?.exits(0)?;
    ensure!(output.stdout == "No space left on device\n", "{output}");
    task.end()
}
