//! `kvd clients`: who is connected, and how each process reads.

use std::collections::BTreeMap;

use kv_client::{ClientInfo, ReadPath};
use kvd::units::show_duration;
use serde_json::json;

use super::common::{Common, say};
use super::failure::{Exit, Outcome};
use super::show;

/// List the processes that are connected, and how each reads
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  kvd clients
  kvd clients --json | jq '.[] | select(.pid == 4711)'

A process may have several connections; they are shown as one line for each cache it told about. PATH is `shared` where
the process reads the cache's memory itself, else `socket` and why. SHARED READS are those that needed no request, as far
as the process has told: it tells at most once a second.")]
pub(super) struct Args {}

/// The connections of one process.
#[derive(Default)]
struct Process<'a> {
    connections: usize,
    requests: u64,
    connected_ms: u128,
    idle_ms: Option<u128>,
    paths: BTreeMap<&'a str, (u64, &'a ReadPath)>,
}

pub(super) fn run(common: &Common, _args: &Args) -> Outcome {
    let clients = common.client()?.admin().clients()?;
    if common.json {
        say(serde_json::Value::Array(clients.iter().map(json_row).collect()))?;
        return Ok(Exit::Done);
    }
    let mut table = show::Rows::new([
        "PID",
        "USER",
        "NAME",
        "CONNECTIONS",
        "SINCE",
        "IDLE",
        "REQUESTS",
        "CACHE",
        "SHARED READS",
        "PATH",
    ]);
    let ms = |ms: u128| {
        let whole = u64::try_from(ms).unwrap_or(u64::MAX);
        show_duration(std::time::Duration::from_secs(whole / 1_000))
    };
    for ((pid, uid, name), process) in by_process(&clients) {
        let mut paths: Vec<_> = process
            .paths
            .iter()
            .map(|(cache, (reads, path))| [(*cache).to_owned(), reads.to_string(), path.to_string()])
            .collect();
        if paths.is_empty() {
            paths.push(["-".to_owned(), "0".to_owned(), "-".to_owned()]);
        }
        for [cache, reads, path] in paths {
            table.add([
                pid.to_string(),
                uid.to_string(),
                name.to_owned(),
                process.connections.to_string(),
                ms(process.connected_ms),
                ms(process.idle_ms.unwrap_or(0)),
                process.requests.to_string(),
                cache,
                reads,
                path,
            ]);
        }
    }
    say(table)?;
    Ok(Exit::Done)
}

fn by_process(clients: &[ClientInfo]) -> BTreeMap<(u32, u32, &str), Process<'_>> {
    let mut processes: BTreeMap<_, Process<'_>> = BTreeMap::new();
    for client in clients {
        let process = processes.entry((client.pid, client.uid, client.name.as_str())).or_default();
        process.connections += 1;
        process.requests += client.requests;
        process.connected_ms = process.connected_ms.max(client.connected.as_millis());
        let idle = client.idle.as_millis();
        process.idle_ms = Some(process.idle_ms.map_or(idle, |least| least.min(idle)));
        for (cache, reads, path) in &client.paths {
            let told = process.paths.entry(cache).or_insert((0, path));
            // Whichever connection told most is the one in use; a reason counts where any connection gave one.
            *told = (told.0 + reads, if path.is_shared() { told.1 } else { path });
        }
    }
    processes
}

fn json_row(client: &ClientInfo) -> serde_json::Value {
    let paths = client.paths.iter().map(|(cache, reads, path)| {
        json!({
            "cache": cache,
            "shared_reads": reads,
            "path": if path.is_shared() { "shared" } else { "socket" },
            "because": path.because(),
        })
    });
    json!({
        "id": client.id,
        "name": client.name,
        "uid": client.uid,
        "pid": client.pid,
        "connected_ms": u64::try_from(client.connected.as_millis()).unwrap_or(u64::MAX),
        "idle_ms": u64::try_from(client.idle.as_millis()).unwrap_or(u64::MAX),
        "requests": client.requests,
        "caches": paths.collect::<Vec<_>>(),
    })
}
