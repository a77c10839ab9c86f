//! What `docker run` puts into a container's spec: network, volumes, user, rights, init.
use crate::case::{Case, Test};
use crate::harness::Kind;
use crate::harness::command::output;
use anyhow::{Result, ensure};

pub const CASES: &[Case] = &[
    // dockerd joins the container to its network by a hook (prestart) that the runtime runs.
    Case::new("network", |test| {
        let output = test.output(&[], &["ls", "/sys/class/net"])?.exits(0)?;
        ensure!(sorted(&output.lines()) == ["eth0", "lo"], "{output}");
        Ok(())
    })
    .all(),
    Case::new("no_network", |test| {
        let output = test.output(&["--network", "none"], &["ls", "/sys/class/net"])?.exits(0)?;
        ensure!(output.stdout == "lo\n", "{output}");
        Ok(())
    })
    .all(),
    Case::new("network_of_the_host", |test| {
        let output = test.output(&["--network", "host"], &["ls", "/sys/class/net"])?.exits(0)?;
        ensure!(output.lines().contains(&"docker0"), "{output}");
        Ok(())
    })
    .all(),
    Case::new("network_of_another_container", shared_network).all(),
    Case::new("names", |test| {
        let options = ["--hostname", "probe-host", "--domainname", "example.org"];
        let output = test.output(&options, &["names"])?.exits(0)?;
        ensure!(output.stdout == "probe-host example.org\n", "{output}");
        Ok(())
    }),
    Case::new("environment", |test| {
        let output = test.output(&["--env", "NAME=value"], &["env", "NAME"])?.exits(0)?;
        ensure!(output.stdout == "value\n", "{output}");
        Ok(())
    })
    .all(),
    Case::new("user", |test| {
        let output = test.output(&["--user", "12:34", "--group-add", "56"], &["id"])?.exits(0)?;
        ensure!(output.stdout.contains("Uid:\t12\t12\t12\t12\nGid:\t34\t34\t34\t34\nGroups:\t34 56 \n"), "{output}");
        Ok(())
    }),
    Case::new("capabilities", |test| {
        let output = test.output(&["--cap-drop", "ALL", "--cap-add", "NET_RAW"], &["id"])?.exits(0)?;
        ensure!(output.stdout.contains("CapEff:\t0000000000002000\n"), "{output}");
        ensure!(output.stdout.contains("Seccomp:\t2\n"), "{output}");
        Ok(())
    }),
    Case::new("no_new_privileges", |test| {
        let output = test.output(&["--security-opt", "no-new-privileges"], &["id"])?.exits(0)?;
        ensure!(output.stdout.contains("NoNewPrivs:\t1\n"), "{output}");
        Ok(())
    }),
    Case::new("privileged", |test| {
        let output = test.output(&["--privileged"], &["try", "mount"])?.exits(0)?;
        ensure!(output.stdout == "ok\n", "{output}");
        let output = test.output(&[], &["try", "mount"])?.exits(0)?;
        ensure!(output.stdout != "ok\n", "{output}");
        Ok(())
    }),
    Case::new("ulimit", |test| {
        let output = test.output(&["--ulimit", "nofile=99:100"], &["ulimit", "nofile"])?.exits(0)?;
        ensure!(output.stdout == "99 100\n", "{output}");
        Ok(())
    }),
    Case::new("read_only", |test| {
        let refused = test.output(&["--read-only"], &["write", "/file", "text"])?;
        ensure!(refused.code != 0, "written: {refused}");
        test.output(&["--read-only", "--tmpfs", "/scratch"], &["write", "/scratch/file", "text"])?.exits(0).map(drop)
    })
    .all(),
    Case::new("folder_that_is_made", |test| {
        let output = test.output(&["--workdir", "/made/by/docker"], &["pwd"])?.exits(0)?;
        ensure!(output.stdout == "/made/by/docker\n", "{output}");
        Ok(())
    }),
    Case::new("init", |test| {
        let output = test.output(&["--init"], &["cat", "/proc/1/comm"])?.exits(0)?;
        ensure!(output.stdout == "docker-init\n", "{output}");
        Ok(())
    }),
    Case::new("volume", volume).all(),
];

fn sorted<'a>(lines: &[&'a str]) -> Vec<&'a str> {
    let mut lines = lines.to_vec();
    lines.sort_unstable();
    lines
}

fn shared_network(test: &Test) -> Result<()> {
    test.detach(&["--network", "none"], &["pause"])?;
    let (name, network) = (format!("{}.other", test.name), format!("container:{}", test.name));
    let mut run =
        test.run_as(&name, test.kind.image_name(), &["--rm", "--network", &network], &["ls", "/sys/class/net"]);
    let output = output(&mut run, b"")?.exits(0)?;
    ensure!(output.stdout == "lo\n", "{output}");
    test.remove()
}

/// What a Linux container writes, another of the test's kind reads.
fn volume(test: &Test) -> Result<()> {
    let mount = format!("{}:/data", test.name);
    let options = ["--rm", "--volume", &mount];
    let other = format!("{}.other", test.name);
    let mut write = test.run_as(&other, Kind::Linux.image_name(), &options, &["write", "/data/file", "text"]);
    output(&mut write, b"")?.exits(0)?;
    let read = output(&mut test.run(&options, &["cat", "/data/file"]), b"")?.exits(0)?;
    ensure!(read.stdout == "text", "{read}");
    test.docker(&["volume", "rm"]).map(drop)
}
