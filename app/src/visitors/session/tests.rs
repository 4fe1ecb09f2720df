//! Two stores that agree, whatever dies between them.

use std::os::unix::process::ExitStatusExt as _;

use rustix::process::{Signal, getpid, kill_process};
use tokio::process::Command;

use super::*;
use crate::cli::Places;
use crate::testing::TestShop;

async fn shown(sessions: &Sessions, id: &SessionId) -> (Session, u32) {
    let visit = Visit::default();
    let session = sessions.read(id, &visit).await.unwrap();
    (session, visit.queries())
}

async fn row(sessions: &Sessions, id: &SessionId) -> Session {
    let mut connection = sessions.database.primary().acquire().await.unwrap();
    select(&mut connection, id).await.unwrap()
}

#[tokio::test]
async fn a_cart_is_read_from_the_cache_and_rebuilt_from_the_database() {
    let shop = TestShop::open().await;
    let (sessions, id) = (&shop.shop.sessions, SessionId::random().unwrap());
    assert_eq!(shown(sessions, &id).await, (Session::default(), 1));
    assert_eq!(shown(sessions, &id).await.1, 0, "that there is nothing is known, too");
    let changed = sessions.change(&id, |session| session.add(ToyId(7), 2)).await.unwrap();
    assert_eq!(changed.lines, [(ToyId(7), 2)]);
    assert_eq!(shown(sessions, &id).await, (changed.clone(), 0));
    shop.client.cache("session").clear(kv_client::Effect::Gone).await.unwrap();
    assert_eq!(shown(sessions, &id).await, (changed.clone(), 1));
    assert_eq!(shown(sessions, &id).await, (changed, 0));
}

/// A worker of the test below, in a process of its own: told a cart and what to put there, it commits, and is killed before the
/// cache hears of it.
#[tokio::test]
async fn worker_that_is_killed() {
    let Ok(told) = std::env::var("SHOP_KILLED") else { return };
    let [data, socket, id, toy, count] = told.split('\n').collect::<Vec<_>>()[..] else { panic!("{told}") };
    let places = Places { data: data.into(), database: None, replicas: vec![], cache: Some(socket.into()) };
    let sessions = Sessions::new(&places.client("killed"), places.database().unwrap(), Clock::system());
    let mut change = sessions.begin(&SessionId::of_text(id)).await.unwrap();
    change.session.set(ToyId(toy.parse().unwrap()), count.parse().unwrap());
    let _committed = change.commit().await.unwrap();
    kill_process(getpid(), Signal::KILL).unwrap();
}

/// Workers die where it hurts: the database has the change, and nobody told the cache.
#[tokio::test]
async fn killed_a_thousand_times_between_commit_and_cache_no_cart_differs() {
    let shop = TestShop::open().await;
    let sessions = &shop.shop.sessions;
    let ids: Vec<SessionId> = (0..50).map(|_| SessionId::random().unwrap()).collect();
    for death in 0..1_000_i64 {
        let id = &ids[usize::try_from(death).unwrap() % ids.len()];
        if death % 3 == 0 {
            // So that there is something old to be shown.
            shown(sessions, id).await;
        }
        let (data, socket) = (shop.dir.path().display(), shop.daemon.socket().display());
        let (toy, count) = (1 + death % 200, 1 + death % 9);
        let told = format!("{data}\n{socket}\n{}\n{toy}\n{count}", id.as_str());
        let mut worker = Command::new(std::env::current_exe().unwrap());
        worker.args(["--exact", "visitors::session::tests::worker_that_is_killed", "--nocapture"]);
        let ended = worker.env("SHOP_KILLED", told).output().await.unwrap();
        assert_eq!(ended.status.signal(), Some(9), "{}", String::from_utf8_lossy(&ended.stderr));
        let kept = row(sessions, id).await;
        assert!(kept.lines.contains(&(ToyId(toy), count)), "death {death}: it did not commit");
        assert_eq!(shown(sessions, id).await.0, kept, "death {death}");
    }
    shop.daemon.clock().advance(CHANGING_TTL);
    for id in &ids {
        assert_eq!(shown(sessions, id).await.0, row(sessions, id).await);
        assert_eq!(shown(sessions, id).await.1, 0, "its mark is over, and it is cached again");
    }
}

/// The answer to a commit is lost, and the change is tried again.
#[tokio::test]
async fn a_change_that_is_made_again_counts_once() {
    let shop = TestShop::open().await;
    let (sessions, id) = (&shop.shop.sessions, SessionId::random().unwrap());
    for which in ["one", "one", "two"] {
        let more = |session: &mut Session| session.add(ToyId(7), 1);
        sessions.change_once(&id, which, more).await.unwrap();
    }
    assert_eq!(shown(sessions, &id).await.0.in_cart(), 2);
}

/// Its visitor leaves at any moment: what the database has, the cache has soon.
#[tokio::test]
async fn a_change_whose_visitor_left_is_told_to_the_cache() {
    let shop = TestShop::open().await;
    let (sessions, id) = (&shop.shop.sessions, SessionId::random().unwrap());
    for left in 0..100 {
        let change = sessions.change(&id, |session| session.add(ToyId(1 + left % 40), 1));
        let patience = Duration::from_micros(u64::try_from(left).unwrap() * 30);
        drop(tokio::time::timeout(patience, change).await);
        let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
        while shown(sessions, &id).await.1 > 0 {
            assert!(tokio::time::Instant::now() < deadline, "nobody told the cache after {patience:?}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

#[tokio::test]
async fn a_mark_that_was_lost_in_the_commit_leaves_nothing_old_behind() {
    let shop = TestShop::open().await;
    let (sessions, id) = (&shop.shop.sessions, SessionId::random().unwrap());
    let mut change = sessions.begin(&id).await.unwrap();
    change.session.set(ToyId(7), 3);
    let committed = change.commit().await.unwrap();
    // The mark is over, and somebody who had read the row before the commit puts it only now.
    sessions.kept.put(id.as_str(), &Kept::Is(Session::default()), TTL).await.unwrap();
    committed.publish().await;
    assert_eq!(shown(sessions, &id).await.0, row(sessions, &id).await);
}

#[tokio::test]
async fn changes_that_meet_all_count_and_the_last_is_shown() {
    let shop = TestShop::open().await;
    let (sessions, id) = (shop.shop.sessions.clone(), SessionId::random().unwrap());
    let other =
        crate::database::Database::open(&shop.dir.path().join("shop.sqlite").display().to_string(), &[])
            .unwrap();
    let other = Sessions::new(&shop.client, other, shop.daemon.clock().clone());
    let tasks: Vec<_> = (0..40)
        .map(|at| {
            let (sessions, id) = (if at % 2 == 0 { sessions.clone() } else { other.clone() }, id.clone());
            tokio::spawn(async move {
                sessions.change(&id, |session| session.add(ToyId(7), 1)).await.unwrap();
                sessions.read(&id, &Visit::default()).await.unwrap()
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let last = shown(&sessions, &id).await.0;
    assert_eq!((last.version, last.in_cart()), (40, 40));
    assert_eq!(last, row(&sessions, &id).await);
}

#[tokio::test]
async fn without_a_cache_carts_are_the_databases() {
    let shop = TestShop::open().await;
    let away = Client::builder().socket("/nowhere/kvd.sock").build_lazy();
    let workers: Vec<Sessions> = (0..2)
        .map(|_| Sessions::new(&away, shop.shop.database.clone(), shop.daemon.clock().clone()))
        .collect();
    let id = SessionId::random().unwrap();
    for round in 1..=5 {
        workers[0].change(&id, |session| session.add(ToyId(7), 1)).await.unwrap();
        assert_eq!(shown(&workers[1], &id).await.0.in_cart(), round, "another worker shows it at once");
    }
}

#[tokio::test]
async fn a_change_that_is_dropped_never_was() {
    let shop = TestShop::open().await;
    let (sessions, id) = (&shop.shop.sessions, SessionId::random().unwrap());
    sessions.change(&id, |session| session.add(ToyId(7), 2)).await.unwrap();
    let mut change = sessions.begin(&id).await.unwrap();
    change.session.set(ToyId(7), 0);
    drop(change);
    assert_eq!(shown(sessions, &id).await.0.lines, [(ToyId(7), 2)]);
    assert_eq!(row(sessions, &id).await.version, 1);
}
