//! Worker processes: this test binary again, in a role.

use std::path::Path;
use std::process::{Child, Command, Stdio};

const ROLE: &str = "KVD_TEST_ROLE";

/// A worker process in `role` with the environment it needs.
pub(crate) fn spawn(role: &str, socket: &Path, vars: &[(&str, String)]) -> Child {
    command(role, socket, vars).spawn().expect("this test binary can be started again")
}

/// As `spawn`, for a worker that is told what to do line by line.
pub(crate) fn spawn_told(role: &str, socket: &Path, vars: &[(&str, String)]) -> Child {
    command(role, socket, vars).stdin(Stdio::piped()).spawn().expect("this test binary can be started again")
}

fn command(role: &str, socket: &Path, vars: &[(&str, String)]) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this test binary has a path"));
    command
        .args(["worker::process", "--exact", "--nocapture", "--test-threads=1"])
        .env(ROLE, role)
        .env("KVD_SOCKET", socket)
        .envs(vars.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// In a worker: plays its role. In a test run: checks that workers play the role they are given.
#[test]
fn process() {
    match std::env::var(ROLE).as_deref() {
        Ok("watcher") => crate::shared::watcher(),
        Ok("quiet") => crate::shared::quiet_reader(),
        Ok("old-kernel") => crate::shared::on_an_old_kernel(),
        Ok("reader") => crate::shared::reader(),
        Ok("container") => crate::shared::in_a_container(),
        Ok("intruder") => crate::intruder::intruder(),
        Ok("mortal") => crate::readers::mortal(),
        Ok("busy") => crate::starved::busy(),
        Ok("torn") => crate::torn::reader(),
        Ok("fair") => crate::fair::part(),
        Ok("historian") => crate::serial::historian(),
        Ok("herd") => crate::herd::member(),
        Ok("stale-reader") => crate::clear_stale::reader(),
        Ok("link") => crate::rings::link(),
        Ok("dependant") => crate::outage::dependant(),
        Ok("holder") => crate::holders::holder(),
        Ok("loader") => crate::leases::loader(),
        Ok("storm") => crate::crash::storm_worker(),
        Ok("restarted") => crate::restart::restarted(),
        Ok("stranger") => crate::reload::stranger(),
        Ok("attempter") => crate::access::attempter(),
        Ok("foreigner") => crate::access::foreigner(),
        Ok("reader-meanwhile") => crate::access::reader_meanwhile(),
        Ok("echo") => println!("echo {}", std::env::var("KVD_SOCKET").unwrap_or_default()),
        Ok(role) => panic!("nobody knows the role {role}"),
        Err(_) => {
            let echo = spawn("echo", Path::new("here"), &[]).wait_with_output().expect("our child");
            assert!(String::from_utf8_lossy(&echo.stdout).contains("echo here"));
            assert!(!spawn("nonsense", Path::new("here"), &[]).wait().expect("our child").success());
        }
    }
}
