//! A client made before `fork` is used after it: the child connects anew, and its parent's stream is not touched.
//!
//! A program of its own, because it forks, by `daemon(3)`: the parent's half ends at once, the child goes on.

mod fake;

use std::process::{Command, Stdio};

use fake::Fake;
use kv_client::blocking::Client;

const SOCKET: &str = "KVD_TEST_FORK_SOCKET";

fn main() {
    if let Some(socket) = std::env::var_os(SOCKET) {
        return child(
            Client::builder().socket(socket).shared_memory(false).build().expect("the daemon is there"),
        );
    }
    let fake = Fake::start();
    let output = Command::new(std::env::current_exe().expect("this program has a path"))
        .env(SOCKET, fake.socket())
        .stdin(Stdio::null())
        .output()
        .expect("this program starts again");
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(said.trim(), "the child's own", "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(fake.value("product", "42").as_deref(), Some(&b"the child's own"[..]));
    // The parent's and the child's; with the parent's used by both there were one.
    assert_eq!(fake.welcomes(), 2);
    println!("test a_child_connects_anew ... ok\n\ntest result: ok. 1 passed; 0 failed");
}

fn child(client: Client) {
    let cache = client.cache("product");
    cache.put("42", "the parent's", None).expect("the parent puts");
    // Standard output stays: its end tells the test that the child is done.
    nix::unistd::daemon(true, true).expect("fork");
    cache.put("42", "the child's own", None).expect("the child puts");
    let value = cache.get("42").expect("the child gets").expect("it was put");
    println!("{}", String::from_utf8_lossy(&value));
}
