//! `app demo`: a whole shop by one command, on a machine that has nothing but this program.
//!
//! From "Building a Large-scale E-commerce Site with Apache and mod_perl": the whole system runs on a developer's workstation. The order matters: the
//! database and its catalogue, then kvd, then whoever uses both; the end goes backwards. The pitfall: a demo that leaves something behind.
//! Every process it starts ends with it, however it ends, and a directory that nobody named is removed.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kv_client::Client;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::cli::{Demo, Failure, Places, Web};
use crate::fill_from;
use crate::staff::{self, Job, told_to_end};

/// How long kvd may take to answer for the first time.
const READY_WITHIN: Duration = Duration::from_secs(20);
/// How often it is looked for.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Until Ctrl-C.
pub(crate) async fn run(options: &Demo) -> Result<(), Failure> {
    let told = told_to_end()?;
    let open = OpenShop::open(options).await?;
    say!("the shop is open at http://{}/ with {} toys; Ctrl-C closes it", open.address, open.toys);
    say!("how it does: http://{}/status    mails: {}", open.address, open.places.mail().display());
    say!("kvd: KVD_SOCKET={}", open.socket().display());
    told.await;
    say!("closing");
    open.close().await;
    Ok(())
}

/// A shop with all its processes.
pub(crate) struct OpenShop {
    pub(crate) address: SocketAddr,
    pub(crate) places: Places,
    pub(crate) toys: usize,
    end: watch::Sender<bool>,
    workers: JoinSet<()>,
    others: JoinSet<()>,
    end_daemon: watch::Sender<bool>,
    daemon: JoinSet<()>,
    _directory: Directory,
}

impl OpenShop {
    pub(crate) async fn open(options: &Demo) -> Result<OpenShop, Failure> {
        let directory = Directory::of(options.data.as_deref())?;
        let socket = directory.path().join("kvd").join(kvd::config::SOCKET_NAME);
        let places = Places {
            data: directory.path().to_owned(),
            database: options.database.clone(),
            replicas: options.replicas.clone(),
            cache: Some(socket),
        };
        let toys = fill_from(&options.toys, &places).await?;
        let ((end_daemon, ending_daemon), (end, ending)) = (watch::channel(false), watch::channel(false));
        let (parent, mut daemon) = (OsString::from(std::process::id().to_string()), JoinSet::new());
        let dir = directory.path().join("kvd").into_os_string();
        let arguments = ["kvd".into(), "--dir".into(), dir, "--parent".into(), parent.clone()];
        let job = Job { role: "kvd", arguments: arguments.into(), stdin: None };
        daemon.spawn(staff::keep(job, ending_daemon));
        answers(&places).await?;
        let mut others = JoinSet::new();
        for role in ["orders", "refresh"] {
            let mut arguments: Vec<OsString> = vec![role.into(), "--parent".into(), parent.clone()];
            arguments.extend(places.arguments());
            others.spawn(staff::keep(Job { role, arguments, stdin: None }, ending.clone()));
        }
        let web = Web {
            workers: options.workers,
            listen: options.listen,
            manners: options.manners.clone(),
            places: places.clone(),
        };
        let (address, workers) = crate::prefork::open(&web, &ending).await?;
        Ok(OpenShop {
            address,
            places,
            toys,
            end,
            workers,
            others,
            end_daemon,
            daemon,
            _directory: directory,
        })
    }

    fn socket(&self) -> PathBuf {
        self.places.cache.clone().unwrap_or_default()
    }

    /// The workers first, kvd last. Whoever is not there to hear it has ended already.
    pub(crate) async fn close(mut self) {
        let _ = self.end.send(true);
        while self.workers.join_next().await.is_some() {}
        while self.others.join_next().await.is_some() {}
        let _ = self.end_daemon.send(true);
        while self.daemon.join_next().await.is_some() {}
    }
}

/// Waits until kvd answers.
async fn answers(places: &Places) -> Result<(), Failure> {
    let deadline = Instant::now() + READY_WITHIN;
    let socket = places.cache.clone().unwrap_or_default();
    loop {
        if Client::builder().socket(&socket).name("demo").build().await.is_ok() {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(Failure::NotReady { role: "kvd", within: READY_WITHIN });
        }
        sleep(LOOK_EVERY).await;
    }
}

/// Where a demo lives; removed at its end if nobody named it.
struct Directory {
    path: PathBuf,
    is_ours: bool,
}

impl Directory {
    fn of(named: Option<&Path>) -> Result<Directory, Failure> {
        let path = match named {
            Some(dir) => dir.to_owned(),
            None => std::env::temp_dir().join(format!("kvd-shop-{}", std::process::id())),
        };
        let made = std::fs::create_dir_all(&path);
        made.map_err(|source| Failure::Directory { dir: path.clone(), source })?;
        let path = std::path::absolute(&path).map_err(|source| Failure::Directory { dir: path, source })?;
        Ok(Directory { path, is_ours: named.is_none() })
    }

    fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if self.is_ours
            && let Err(error) = std::fs::remove_dir_all(&self.path)
        {
            tracing::warn!(%error, dir = %self.path.display(), "a directory is left behind");
        }
    }
}
