//! What is installed: the formats that a version names, manual pages, the default configuration, and the script that brings
//! them and takes them away.

use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use kv_proto::wire::PROTOCOL_VERSION;
use kvd::config::DEFAULT_FILE;

use crate::intruder::handed;
use crate::support::{Home, kvd, text};

fn ok(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.output().expect("it can be started");
    assert!(status.success(), "{command:?}: {}{}", text(&stdout), text(&stderr));
    text(&stdout)
}

fn is_there(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success())
}

#[test]
fn version_names_the_formats_that_are_on_the_wire_in_memory_and_on_disk() {
    let home = Home::new();
    let _daemon = home.start();
    home.client().cache("c").put("k", "v", std::time::Duration::from_secs(60)).unwrap();
    let segment = std::fs::File::from(handed(&home.socket(), "c").pop().expect("control page and segment"));
    let mut layout = [0; 8];
    segment.read_exact_at(&mut layout, 8).unwrap();
    let (layout, disk) = (u64::from_le_bytes(layout), kvd::store::FORMAT);
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(
        ok(kvd().arg("--version")),
        format!(
            "kvd {version}\nwire format {PROTOCOL_VERSION}\nsegment format {layout}\ndisk format {disk}\n"
        )
    );
    assert_eq!(ok(kvd().arg("-V")), format!("kvd {version}\n"));
}

#[test]
fn there_is_a_manual_page_for_every_command_and_none_has_a_warning() {
    let dir = tempfile::tempdir().unwrap();
    let said = ok(kvd().arg("man").arg("--out").arg(dir.path()));
    let read = |page: &str| std::fs::read_to_string(dir.path().join(page)).expect("it was made");
    let all = read("man1/kvd.1");
    let commands = text(&kvd().arg("--help").output().unwrap().stdout);
    let commands: Vec<&str> = commands
        .lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.strip_prefix("  ")?.split(' ').next())
        .filter(|command| !command.is_empty() && *command != "help")
        .collect();
    assert!(commands.len() > 30, "{commands:?}");
    for command in &commands {
        let page = read(&format!("man1/kvd-{command}.1"));
        for part in [".SH NAME", ".SH OPTIONS", ".SH EXAMPLES", ".SH \"EXIT STATUS\"", ".SH \"SEE ALSO\""] {
            assert!(page.contains(part), "kvd-{command}(1) has no {part}: {page}");
        }
        assert!(all.contains(&command.replace('-', "\\-")), "kvd(1) does not name {command}");
    }
    let configuration = read("man5/kvd.toml.5");
    for key in ["slow_log_threshold", "after_clean_stop", "[access]", "64MiB"] {
        assert!(configuration.contains(key), "kvd.toml(5) does not tell of {key}");
    }
    assert_eq!(said.lines().count(), commands.len() + 2);
    if !is_there("groff") {
        return println!("skipped: there is no groff here (apt-get install groff)");
    }
    for page in said.lines() {
        let shown = Command::new("groff").args(["-man", "-Tutf8", "-ww", "-z", page]).output().unwrap();
        assert!(shown.status.success() && shown.stderr.is_empty(), "{page}: {}", text(&shown.stderr));
    }
}

#[test]
fn a_daemon_serves_with_every_setting_of_the_installed_configuration() {
    let uncommented: String = DEFAULT_FILE
        .lines()
        .map(|line| line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')).unwrap_or(line))
        .flat_map(|line| [line, "\n"])
        .collect();
    let mut home = Home::configured(&uncommented);
    let metrics = home.path().join("metrics.sock").display().to_string();
    home.add_flags(&["--metrics-listen", &metrics]);
    let _daemon = home.start();
    assert!(text(&home.kvd(&["caches"]).stdout).contains("session"));
}

#[test]
fn what_is_installed_serves_and_its_removal_leaves_nothing() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/install-check");
    println!("{}", ok(Command::new(script).arg(env!("CARGO_BIN_EXE_kvd"))));
}

/// A daemon that is wherever the session left it.
struct Session {
    dir: tempfile::TempDir,
}

impl Session {
    fn run(&self, line: &str) -> Output {
        let dir = self.dir.path();
        let kvd = Path::new(env!("CARGO_BIN_EXE_kvd")).parent().expect("it lies in a directory");
        let path = format!("{}:{}", kvd.display(), std::env::var("PATH").expect("there is one"));
        let mut command = Command::new("timeout");
        command.args(["60", "bash", "-o", "pipefail", "-c", line]).current_dir(dir).stdin(Stdio::null());
        command.env("PATH", path).env("KVD_CONFIG", dir.join("kvd.toml"));
        command.env("KVD_DIR", dir.join("store")).env("KVD_SOCKET", dir.join("kvd.sock"));
        command.output().expect("timeout and bash are there")
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.run("kvd stop");
    }
}

#[test]
fn the_session_in_the_operations_manual_runs() {
    let session = Session { dir: tempfile::tempdir().unwrap() };
    let dir = session.dir.path();
    let configuration =
        "[caches.product]\nmemory = \"16MiB\"\n[caches.session]\ndurability = \"durable\"\n[caches.page]\n";
    std::fs::write(dir.join("kvd.toml"), configuration).unwrap();
    let dump = "VERSION=3\nformat=print\ntype=btree\nHEADER=END\n one\n 1\n two\n 2\nDATA=END\n";
    std::fs::write(dir.join("cart.dump"), dump).unwrap();
    let before = [
        "kvd serve >serve.log 2>&1 & until kvd ping >/dev/null 2>&1; do sleep 0.05; done",
        "kvd put product 42 rocket --ttl 5m --tag sku:42 && kvd put product lego:1 castle --tag sku:1",
        "kvd put page /toys/ toys --ttl 90s && kvd put page / home && kvd put session 7f3a anna",
    ];
    let has_berkeley_db = session.run("db5.3_load -f cart.dump cart.db").status.success();
    let manual = include_str!("../docs/OPERATIONS.md");
    let blocks = manual.split("```").filter_map(|block| block.strip_prefix("console\n"));
    let lines: Vec<&str> = blocks.flat_map(str::lines).filter_map(|line| line.strip_prefix("$ ")).collect();
    assert!(lines.len() > 30, "{lines:?}");
    for line in before.into_iter().chain(lines) {
        if line.starts_with("db5.3_dump") && !has_berkeley_db {
            println!("skipped: {line}: apt-get install db5.3-util");
            continue;
        }
        let Output { status, stdout, stderr } = session.run(line);
        assert!(status.success(), "$ {line}\n{}{}{status}", text(&stdout), text(&stderr));
    }
}
