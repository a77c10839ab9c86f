//! `docker exec`.
use crate::case::{Case, Test};
use crate::harness::Kind;
use crate::harness::command::{Running, output};
use crate::harness::pty::OnTerminal;
use crate::life::greeting;
use crate::streams::follows_the_size;
use anyhow::{Context, Result, ensure};

pub const CASES: &[Case] = &[
    Case::new("of_the_probe", |test| {
        in_running(test, |test| {
            let output = output(&mut test.exec(&[], &["hello"]), b"")?.exits(0)?;
            ensure!(output.stdout == greeting(test.kind) && output.stderr.is_empty(), "{output}");
            Ok(())
        })
    })
    .all(),
    Case::new("exit_code", |test| {
        in_running(test, |test| output(&mut test.exec(&[], &["exit", "7"]), b"")?.exits(test.kind.code(7)).map(drop))
    })
    .all(),
    Case::new("stdin", |test| {
        in_running(test, |test| {
            let text = "0123456789abcde\n".repeat(16384);
            let output = output(&mut test.exec(&["--interactive"], &["echo"]), text.as_bytes())?.exits(0)?;
            ensure!(output.stdout == text, "{} of {} bytes came back", output.stdout.len(), text.len());
            Ok(())
        })
    })
    .all(),
    Case::new("stdout_and_stderr_apart", |test| {
        in_running(test, |test| {
            let output = output(&mut test.exec(&[], &["say", "to stdout", "to stderr"]), b"")?.exits(0)?;
            ensure!(output.stdout == "to stdout" && output.stderr == "to stderr", "{output}");
            Ok(())
        })
    })
    .all(),
    Case::new("terminal", |test| {
        in_running(test, |test| {
            let mut terminal = OnTerminal::spawn(test.exec(&["--interactive", "--tty"], &["wait-stdin"]))?;
            terminal.wait_for("ready\r\n")?;
            terminal.write(b"a line\n")?;
            terminal.wait_for("a line\r\na line\r\n")?;
            terminal.write(b"\x04")?;
            terminal.finish()?.exits(0).map(drop)
        })
    })
    .all(),
    Case::new("terminal_size", |test| {
        in_running(test, |test| {
            let terminal = OnTerminal::spawn(test.exec(&["--interactive", "--tty"], &["sizes", "1000"]))?;
            follows_the_size(&terminal)?;
            test.docker(&["kill"])?;
            terminal.finish()?.exits(137).map(drop)
        })
    }),
    Case::new("environment", |test| {
        in_running(test, |test| {
            let output = output(&mut test.exec(&["--env", "NAME=value"], &["env", "NAME"]), b"")?.exits(0)?;
            ensure!(output.stdout == "value\n", "{output}");
            Ok(())
        })
    })
    .all(),
    Case::new("user_and_folder", |test| {
        in_running(test, |test| {
            let id = output(&mut test.exec(&["--user", "12:34"], &["id"]), b"")?.exits(0)?;
            ensure!(id.stdout.contains("Uid:\t12\t12\t12\t12\nGid:\t34\t34\t34\t34\n"), "{id}");
            ensure!(id.stdout.contains("CapEff:\t0000000000000000\n"), "{id}");
            let folder = output(&mut test.exec(&["--workdir", "/tmp"], &["pwd"]), b"")?.exits(0)?;
            ensure!(folder.stdout == "/tmp\n", "{folder}");
            Ok(())
        })
    }),
    Case::new("privileged", |test| {
        in_running(test, |test| {
            let plain = output(&mut test.exec(&[], &["id"]), b"")?.exits(0)?;
            let all = output(&mut test.exec(&["--privileged"], &["id"]), b"")?.exits(0)?;
            let (plain, all) = (effective(&plain.stdout)?, effective(&all.stdout)?);
            // CAP_SYS_ADMIN is 21 (linux/capability.h).
            ensure!(plain >> 21 & 1 == 0 && all >> 21 & 1 == 1 && all & plain == plain, "{plain:x} and {all:x}");
            Ok(())
        })
    }),
    Case::new("not_found", |test| {
        in_running(test, |test| {
            for program in ["/nothing", "nothing"] {
                // docker has 126 for whatever keeps an exec from starting.
                let output = output(&mut test.exec_program(&[], &[program]), b"")?.exits(126)?;
                ensure!(format!("{output}").contains(program), "{output}");
            }
            // The container is none the worse for it.
            output(&mut test.exec(&[], &["hello"]), b"")?.exits(0).map(drop)
        })
    })
    .all(),
    Case::new("not_executable", |test| {
        in_running(test, |test| output(&mut test.exec_program(&[], &["/etc/passwd"]), b"")?.exits(126).map(drop))
    }),
    Case::new("many_at_once", |test| {
        in_running(test, |test| {
            let execs: Vec<Running> = (0..8)
                .map(|number| {
                    Running::spawn(&mut test.exec(&["--interactive"], &["reply", "here", &number.to_string()]))
                })
                .collect::<Result<_>>()?;
            for (number, exec) in execs.into_iter().enumerate() {
                let output = exec.finish()?.exits(test.kind.code(number as i32))?;
                ensure!(output.stdout == "here\n", "{output}");
            }
            Ok(())
        })
    })
    .all(),
    Case::new("ends_with_the_container", |test| {
        test.detach(&[], &["pause"])?;
        let mut exec = Running::spawn(&mut test.exec(&["--interactive"], &["wait-stdin"]))?;
        exec.wait_for("ready")?;
        test.docker(&["kill"])?;
        exec.ended()?;
        exec.finish()?.exits(137)?;
        test.remove()
    })
    .all(),
    Case::new("refused_while_paused", |test| {
        in_running(test, |test| {
            test.docker(&["pause"])?;
            output(&mut test.exec(&[], &["hello"]), b"")?.refused(&["paused"])?;
            test.docker(&["unpause"])?;
            output(&mut test.exec(&[], &["hello"]), b"")?.exits(0).map(drop)
        })
    })
    .all(),
    // What the program is decides, and not what the container's is.
    Case::new("of_the_other_kind", |test| {
        output(&mut test.run_as(&test.name, "mixed", &["--detach"], &["pause"]), b"")?.exits(0)?;
        for kind in [Kind::Linux, Kind::Core] {
            let output = output(&mut test.exec_program(&[], &[kind.program(), "hello"]), b"")?.exits(0)?;
            ensure!(output.stdout == greeting(kind), "{output}");
        }
        test.remove()
    })
    .kinds(&[Kind::Core])
    .hybrid_only(),
];

/// Does something while the test's container runs, and removes it.
fn in_running(test: &Test, body: fn(&Test) -> Result<()>) -> Result<()> {
    test.detach(&[], &["pause"])?;
    body(test)?;
    test.remove()
}

/// The effective capabilities in what the probe says of its ids.
fn effective(id: &str) -> Result<u64> {
    let line = id.lines().find_map(|line| line.strip_prefix("CapEff:")).context("no CapEff")?;
    u64::from_str_radix(line.trim(), 16).context("CapEff is no number")
}
