//! A nightly job that several processes begin at once, and one does: `cargo run --example cron`.
//!
//! `client.lock` is a lock across the processes of a host. It is free again when its holder ends, however that happens, and
//! when it did not renew it in time. So a job has to do two things: renew the lock between its steps, and stop when it is
//! lost; and guard its result with the fence, a number that grows with every locking, against a holder that was asleep
//! and does not know yet that it has lost it.

#![forbid(unsafe_code)]

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use kv_client::ErrorKind;
use kv_client::blocking::{Client, LockGuard};

const PROCESSES: usize = 4;
const CHAPTERS: [&str; 4] = ["orders", "returns", "stock", "visitors"];
const CHAPTER_TAKES: Duration = Duration::from_millis(400);
/// Longer than a chapter and shorter than the report: it holds only because it is renewed.
const LOCKED_FOR: Duration = Duration::from_millis(1_200);
/// How long a process waits for the lock. A real job would not wait long either: somebody is at it.
const PATIENCE: Duration = Duration::from_millis(500);

fn main() -> Result<(), Box<dyn Error>> {
    match std::env::args_os().nth(1) {
        Some(folder) => job(Path::new(&folder)),
        None => night(),
    }
}

/// What cron starts on every worker: writes the report, unless somebody does or did.
fn job(folder: &Path) -> Result<(), Box<dyn Error>> {
    let me = std::process::id();
    let client = Client::builder().name(format!("nightly report {me}")).build()?;
    let lock = match client.with_op_timeout(PATIENCE).lock("nightly-report", LOCKED_FOR) {
        Ok(lock) => lock,
        // The error names who has it.
        Err(error) if error.kind() == ErrorKind::Timeout => {
            println!("process {me} has nothing to do: {error}");
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    };
    // A lock says that nobody is at it now, not that nobody was.
    if let Some(report) = newest_report(folder)? {
        println!("process {me} has nothing to do: {} is there", report.display());
        return Ok(());
    }
    let fence = lock.fence();
    match write_report(lock) {
        Ok(report) => {
            let path = publish(folder, fence, &report)?;
            println!("process {me} wrote {}:\n{report}", path.display());
            Ok(())
        }
        Err(error) if error.kind() == ErrorKind::LeaseLost => {
            println!("process {me} was too slow, and stops: {error}");
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}

/// The work itself. The guard is given back at the end, which also says whether it was held until then.
fn write_report(mut lock: LockGuard) -> kv_client::Result<String> {
    let mut report = String::new();
    for chapter in CHAPTERS {
        lock.renew()?; // fails when it is somebody else's by now
        std::thread::sleep(CHAPTER_TAKES);
        report += &format!("  {chapter}: as usual\n");
    }
    lock.unlock()?;
    Ok(report)
}

/// The fence is part of the file's name, and whoever reads takes the highest. So a holder that was asleep between its last
/// renewal and this line can only add a file that nobody looks at; it cannot replace what came after it.
fn publish(folder: &Path, fence: u64, report: &str) -> std::io::Result<PathBuf> {
    let path = folder.join(format!("report-{fence:020}.txt"));
    let unfinished = path.with_extension("unfinished");
    std::fs::write(&unfinished, report)?;
    std::fs::rename(&unfinished, &path)?;
    Ok(path)
}

fn newest_report(folder: &Path) -> std::io::Result<Option<PathBuf>> {
    let paths = std::fs::read_dir(folder)?.map(|entry| entry.map(|entry| entry.path()));
    let mut paths = paths.collect::<std::io::Result<Vec<PathBuf>>>()?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "txt"));
    Ok(paths.into_iter().max())
}

/// Plays cron: begins the job in several processes at once.
fn night() -> Result<(), Box<dyn Error>> {
    // A daemon of our own where there is none, so that the example runs by itself.
    let server = std::env::var_os("KVD_SOCKET").is_none().then(kvd::testing::server);
    let folder = tempfile::tempdir()?;
    let mut processes = Vec::new();
    for _ in 0..PROCESSES {
        let mut process = Command::new(std::env::current_exe()?);
        process.arg(folder.path());
        if let Some(server) = &server {
            process.env("KVD_SOCKET", server.socket());
        }
        processes.push(process.spawn()?);
    }
    for mut process in processes {
        process.wait()?;
    }
    let reports = std::fs::read_dir(folder.path())?.count();
    println!("{PROCESSES} processes, {reports} report");
    Ok(())
}
