//! `cargo run -p test-images -- OUTDIR [--artifacts]`: writes every image as an OCI archive for `ctr image import`, and prints its
//! reference and path; with `--artifacts` those whose modules are layers (import them with `--all-platforms --no-unpack`).
use anyhow::{Context, Result, bail};
use std::path::PathBuf;

fn main() -> Result<()> {
    const USAGE: &str = "usage: test-images OUTDIR [--artifacts]";
    let mut args = std::env::args_os().skip(1);
    let out = PathBuf::from(args.next().context(USAGE)?);
    std::fs::create_dir_all(&out).with_context(|| format!("creating {}", out.display()))?;
    match args.next() {
        None => {
            for image in test_images::build()? {
                println!("{} {}", image.reference(), image.save(&out)?.display());
            }
        }
        Some(flag) if flag == "--artifacts" => {
            for artifact in test_images::artifacts()? {
                println!("{} {}", artifact.reference(), artifact.save(&out)?.display());
            }
        }
        Some(_) => bail!(USAGE),
    }
    Ok(())
}
