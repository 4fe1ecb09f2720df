//! Configurations as operators write them, and the messages they get.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use kv_proto::wire::{Durability, Rights};

use super::source::{ACCESS_KEYS, CACHE_KEYS, HOST_KEYS, METRICS_KEYS};
use super::{Config, DEFAULT_FILE, Recover, Sources};

fn sources(env: &[(&str, &str)], flags: &[(&'static str, &str)]) -> Sources {
    let mut variables: BTreeMap<String, String> =
        env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    variables.entry("HOME".to_owned()).or_insert("/nonexistent/home".to_owned());
    let flags = flags.iter().map(|(k, v)| (*k, (*v).to_owned())).collect();
    Sources { file: Some(PathBuf::from("/dev/null")), env: variables, flags, is_root: false }
}

fn load_file(toml: &str, env: &[(&str, &str)], flags: &[(&'static str, &str)]) -> Result<Config, String> {
    let mut file = tempfile::Builder::new().prefix("kvd-").suffix(".toml").tempfile().unwrap();
    file.write_all(toml.as_bytes()).unwrap();
    let mut sources = sources(env, flags);
    sources.file = Some(file.path().to_owned());
    let place = file.path().display().to_string();
    Config::load(&sources).map_err(|e| e.to_string().replace(&place, "FILE"))
}

#[test]
fn nothing_said_is_enough() {
    let config = Config::load(&sources(&[("XDG_RUNTIME_DIR", "/run/user/7")], &[])).unwrap();
    assert_eq!(config.dir, PathBuf::from("/nonexistent/home/.local/state/kvd"));
    assert_eq!(config.socket, PathBuf::from("/run/user/7/kvd/kvd.sock"));
    assert_eq!(config.memory_bytes, 256 << 20);
    assert_eq!(config.journal_bytes_max, 64 << 20);
    assert_eq!(config.default.memory_bytes, 32 << 20);
    assert_eq!(config.default.recover, Recover::Stale);
    assert!(config.access.is_private());
}

#[test]
fn root_lives_in_the_system_directories() {
    let config =
        Config::load(&Sources { is_root: true, ..sources(&[("XDG_RUNTIME_DIR", "/run/user/0")], &[]) })
            .unwrap();
    assert_eq!(config.dir, PathBuf::from("/var/lib/kvd"));
    assert_eq!(config.socket, PathBuf::from("/run/kvd/kvd.sock"));
}

#[test]
fn without_a_runtime_directory_the_socket_is_beside_the_store() {
    let config =
        Config::load(&sources(&[("XDG_STATE_HOME", "/s"), ("XDG_RUNTIME_DIR", "relative")], &[])).unwrap();
    assert_eq!(config.socket, PathBuf::from("/s/kvd/kvd.sock"));
}

#[test]
fn later_sources_win() {
    let toml = "memory = \"64MiB\"\nidle_timeout = \"1m\"\nvalue_max = 4096\n";
    let env = [("KVD_MEMORY", "128m"), ("KVD_IDLE_TIMEOUT", "2m"), ("KVD_LOG", "")];
    let config = load_file(toml, &env, &[("memory", "512MiB")]).unwrap();
    assert_eq!(config.memory_bytes, 512 << 20);
    assert_eq!(config.idle_timeout, Some(Duration::from_secs(120)));
    assert_eq!(config.value_bytes_max, 4_096);
    assert_eq!(config.log, "info");
}

#[test]
fn a_directory_takes_the_socket_with_it() {
    let config = load_file("socket = \"/run/x.sock\"", &[], &[("dir", "/data/kvd")]).unwrap();
    assert_eq!(config.socket, PathBuf::from("/data/kvd/kvd.sock"));
    let config = load_file("socket = \"/run/x.sock\"\ndir = \"/data/kvd\"", &[], &[]).unwrap();
    assert_eq!(config.socket, PathBuf::from("/run/x.sock"));
}

#[test]
fn caches_inherit_the_template() {
    let toml = r#"
        [default]
        ttl = "1h"
        memory = "8MiB"
        [caches.page]
        ttl = "5m"
        ttl_max = "1d"
        [caches.session]
        durability = "durable"
        ttl = "never"
        [caches."hot.data"]
        durability = "memory"
        shared = false
    "#;
    let config = load_file(toml, &[], &[]).unwrap();
    let page = &config.caches["page"];
    assert_eq!((page.ttl_default_ms, page.ttl_max_ms), (Some(300_000), Some(86_400_000)));
    assert_eq!((page.memory_bytes, page.recover), (8 << 20, Recover::Stale));
    let session = &config.caches["session"];
    assert_eq!((session.ttl_default_ms, session.recover), (None, Recover::Keep));
    let hot = &config.caches["hot.data"];
    assert_eq!((hot.durability, hot.disk_bytes_max, hot.shared), (Durability::Memory, 0, false));
}

#[test]
fn large_values_bring_a_larger_pending_log() {
    let config = load_file("value_max = \"16MiB\"", &[], &[]).unwrap();
    assert!(config.pending_log_bytes >= 4 * config.frame_bytes_max() as u64);
    let error = load_file("value_max = \"16MiB\"\npending_log = \"32MiB\"", &[], &[]).unwrap_err();
    assert!(error.starts_with("FILE:2: pending_log = \"32MiB\": is 32 MiB, the least is"), "{error}");
}

#[test]
fn errors_name_place_key_value_and_limit() {
    for (toml, message) in [
        ("\nmemroy = 5", "FILE:2: unknown key `memroy`; did you mean `memory`?"),
        ("[caches.page]\nmemry = 5", "FILE:2: unknown key `caches.page.memry`; did you mean `memory`?"),
        ("[access]\nuser = 5", "FILE:2: unknown key `access.user`; did you mean `users`?"),
        ("value_max = \"17MiB\"", "FILE:1: value_max = \"17MiB\": is 17 MiB, limit is 16 MiB"),
        ("memory = \"lots\"", "FILE:1: memory = \"lots\": unknown unit \"lots\""),
        ("flush_interval = 100", "FILE:1: flush_interval = \"100\": \"100\" has no unit"),
        ("flush_interval = \"2m\"", "FILE:1: flush_interval = \"2m\": is 2m, limit is 1m"),
        ("connections_max = -1", "FILE:1: connections_max = \"-1\": is not a whole number"),
        ("memory = [[1]]", "FILE:1: memory = \"[[1]]\": a text, a number or a truth value was expected"),
        ("memory = 0x10", "FILE:1: memory = \"0x10\": a text, a number"),
        ("caches = 1", "FILE:1: caches = \"1\": a table was expected"),
        ("[caches.A]", "FILE:1: caches = \"A\": \"A\" cannot name a cache"),
        ("[caches.p]\nttl = \"0\"", "FILE:2: caches.p.ttl = \"0\": is 0ms, the least is 1ms"),
        (
            "[default]\ndurability = \"always\"",
            "FILE:2: default.durability = \"always\": is none of: memory, behind",
        ),
        (
            "[caches.p]\ndurability = \"memory\"\ndisk = \"1g\"",
            "FILE:3: caches.p.disk = \"1g\": this cache is",
        ),
        (
            "[access]\nusers = [\"no such user\"]",
            "FILE:2: access.users = \"no such user\": this machine has no user",
        ),
        ("memory = \"64", "FILE:1: "),
        (
            "[caches.p]\nttl = \"2h\"\nttl_max = \"1h\"",
            "configuration: cache p: ttl is 2h, limit is ttl_max = 1h",
        ),
        (
            "memory = \"64MiB\"\n[caches.a]\nmemory = \"40MiB\"\n[caches.b]\nmemory = \"40MiB\"",
            "configuration: the memory of the caches adds up to 80 MiB (a 40 MiB, b 40 MiB), limit is memory = 64 MiB",
        ),
    ] {
        let error = load_file(toml, &[], &[]).expect_err(toml);
        assert!(error.starts_with(message), "{toml:?} said: {error}");
        assert!(!error.contains('\n'), "one line: {error}");
    }
}

#[test]
fn environment_and_flags_are_named_as_the_place() {
    let error = load_file("", &[("KVD_MEMORY", "much")], &[]).unwrap_err();
    assert!(error.starts_with("environment KVD_MEMORY: memory = \"much\""), "{error}");
    let error = load_file("", &[], &[("connections_per_user_max", "0")]).unwrap_err();
    assert!(error.starts_with("flag --connections-per-user-max: "), "{error}");
}

#[test]
fn a_file_that_was_asked_for_must_be_there() {
    let missing = Sources { file: Some(PathBuf::from("/nonexistent/kvd.toml")), ..sources(&[], &[]) };
    let error = Config::load(&missing).unwrap_err().to_string();
    assert!(error.starts_with("/nonexistent/kvd.toml: cannot be read: No such file"), "{error}");
}

#[test]
fn users_by_name_and_number_are_found() {
    let config = load_file(
        "[access]\nusers = [\"root\", \"4242:read\", \"4242:admin\", 7]\ngroups = [\"root\"]",
        &[],
        &[],
    )
    .unwrap();
    assert_eq!(
        config.access.users,
        [(0, Rights::CACHE), (7, Rights::CACHE), (4_242, Rights::READ | Rights::ADMIN)].into()
    );
    assert_eq!(config.access.groups, [(0, Rights::CACHE)].into());
}

#[test]
fn a_configuration_made_in_code_is_checked_too() {
    let mut config = Config::in_dir("somewhere");
    assert!(config.dir.is_absolute());
    config.validate().unwrap();
    config.default.memory_bytes = config.memory_bytes + 1;
    let error = config.validate().unwrap_err().to_string();
    assert!(error.contains("limit is memory = 256 MiB"), "{error}");
}

#[test]
fn metrics_are_served_to_this_machine_only() {
    use super::MetricsListen;
    let listen = |text: &str| load_file(&format!("[metrics]\nlisten = {text:?}\n"), &[], &[]);
    assert_eq!(load_file("", &[], &[]).unwrap().metrics_listen, None);
    let loopback = Some(MetricsListen::Tcp("127.0.0.1:9464".parse().unwrap()));
    assert_eq!(listen("127.0.0.1:9464").unwrap().metrics_listen, loopback);
    let socket = Some(MetricsListen::Unix("/run/kvd/metrics.sock".into()));
    assert_eq!(listen("/run/kvd/metrics.sock").unwrap().metrics_listen, socket);
    assert!(listen("[::1]:9464").is_ok());
    for (place, says) in
        [("0.0.0.0:9464", "from elsewhere"), ("9464", "neither"), ("10.0.0.1:1", "from elsewhere")]
    {
        let error = listen(place).unwrap_err();
        assert!(
            error.contains("FILE:2") && error.contains("metrics.listen") && error.contains(says),
            "{error}"
        );
    }
    let env = load_file("", &[("KVD_METRICS_LISTEN", "[::1]:1")], &[("metrics.listen", "127.0.0.1:9464")]);
    assert_eq!(env.unwrap().metrics_listen, loopback);
    let error = load_file("[metrics]\nport = 1\n", &[], &[]).unwrap_err();
    assert!(error.contains("metrics.port"), "{error}");
}

#[test]
fn logs_are_of_a_known_format_and_filter() {
    use crate::logging::LogFormat;
    let config = load_file("log = \"kvd::server=debug,info\"\nlog_format = \"json\"\n", &[], &[]).unwrap();
    assert_eq!((config.log_format, config.log.as_str()), (LogFormat::Json, "kvd::server=debug,info"));
    assert!(load_file("log_format = \"xml\"\n", &[], &[]).unwrap_err().contains("pretty, json, journald"));
    assert!(load_file("log = \"kvd=loud\"\n", &[], &[]).unwrap_err().contains("FILE:1"));
    assert!(load_file("slow_log_threshold = \"0\"\n", &[], &[]).unwrap().slow_log_threshold.is_none());
}

#[test]
fn the_installed_file_shows_every_setting_with_its_default() {
    let uncommented: String = DEFAULT_FILE
        .lines()
        .map(|line| {
            line.strip_prefix('#').filter(|rest| !rest.is_empty() && !rest.starts_with(' ')).unwrap_or(line)
        })
        .flat_map(|line| [line, "\n"])
        .collect();
    let root: toml::Table = uncommented.parse().unwrap();
    let keys_of = |table: &toml::Table| -> BTreeSet<String> { table.keys().cloned().collect() };
    let names = |keys: &[&str]| -> BTreeSet<String> { keys.iter().map(|key| (*key).to_owned()).collect() };
    let host: Vec<&str> = HOST_KEYS.iter().map(|(key, _)| *key).chain(["default", "caches"]).collect();
    assert_eq!(keys_of(&root), names(&host));
    for (table, keys) in [("access", &ACCESS_KEYS[..]), ("metrics", &METRICS_KEYS), ("default", &CACHE_KEYS)]
    {
        assert_eq!(keys_of(root[table].as_table().unwrap()), names(keys), "[{table}]");
    }

    let load = |toml: &str| {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(toml.as_bytes()).unwrap();
        let file = Some(file.path().to_owned());
        Config::load(&Sources { file, is_root: true, ..Sources::default() }).unwrap()
    };
    let nothing_said = load("");
    assert_eq!(load(DEFAULT_FILE), nothing_said);
    let mut all_said = load(&uncommented);
    // The two that have no default, and stand there as examples.
    assert!(all_said.metrics_listen.take().is_some() && all_said.caches.remove("session").is_some());
    assert_eq!(all_said, nothing_said);
}
