//! `cargo run -p test-images -- OUTDIR`: writes every image as an OCI archive for `ctr image import`.
use anyhow::{Context, Result};
use std::path::PathBuf;

fn main() -> Result<()> {
    let out = PathBuf::from(std::env::args_os().nth(1).context("usage: test-images OUTDIR")?);
    std::fs::create_dir_all(&out).with_context(|| format!("creating {}", out.display()))?;
    for image in test_images::build()? {
        println!("{} {}", image.reference(), image.save(&out)?.display());
    }
    for artifact in test_images::artifacts()? {
        println!("{} {}", artifact.reference(), artifact.save(&out)?.display());
    }
    Ok(())
}
