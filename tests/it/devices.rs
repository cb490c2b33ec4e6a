//! Devices: two workers on this machine stand for others; builds with a GPU's backend check that one as well.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::Value;

use crate::goldens_own;
use crate::models::{Model, random, tiny};
use crate::programs::{Ran, qvl, repository, run};
use crate::tensors::{relative_l2, traced};

const QUESTION: &str = "What is in this picture?";

/// A `qvl worker` that ends with the test.
struct Worker {
    child: Child,
    address: String,
}

impl Worker {
    fn start() -> Self {
        // A port that is free now; nobody else asks for that very one.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut command = qvl();
        // Whatever else this build has stays with the tests of that.
        command
            .args(["worker", "--device", "cpu", "--port", &port.to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stderr.as_mut().unwrap()).read_line(&mut line).unwrap();
        let address = format!("127.0.0.1:{port}");
        assert!(line.starts_with("serving CPU at ") && line.contains(&address), "{line:?}");
        // It says so just before it listens.
        while std::net::TcpStream::connect(&address).is_err() {
            std::thread::sleep(Duration::from_millis(20));
        }
        Worker { child, address }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Two workers, and the flag that names them.
fn two() -> ([Worker; 2], String) {
    let workers = [Worker::start(), Worker::start()];
    let addresses = workers.each_ref().map(|worker| worker.address.clone()).join(",");
    (workers, addresses)
}

fn picture() -> std::path::PathBuf {
    repository("tests/data/pictures/shapes.png")
}

/// A command over a model and a picture.
fn over(model: &Model, subcommand: &str) -> Command {
    let mut command = qvl();
    command.args([subcommand, "-m"]).arg(&model.text).arg("--mmproj").arg(&model.mmproj);
    command
}

/// What `trace --ops --json` says: the vision graph's parts, and the devices that have nodes of a part.
fn ops(command: &mut Command) -> (u64, impl Fn(&str) -> Vec<String> + use<>) {
    let ops = run(command.args(["--ops", "--json", QUESTION])).json();
    let splits = ops["vision_splits"].as_u64().unwrap();
    let devices = move |part: &str| {
        let of_part = ops["ops"].as_array().unwrap().iter().filter(|op| op["part"] == part);
        let mut devices: Vec<_> = of_part.map(|op| op["device"].as_str().unwrap().to_owned()).collect();
        devices.sort();
        devices.dedup();
        devices
    };
    (splits, devices)
}

/// Whoever rotates queries and keys; prompts and answers beyond the trained length are among them.
#[test]
fn the_goldens_over_two_workers() {
    let (_workers, addresses) = two();
    for rope in ["device", "exact"] {
        goldens_own::check_all(&["--rpc", &addresses, "--vision-device", "rpc0", "--rope", rope]);
    }
}

#[test]
fn layers_are_split_and_the_picture_stays_where_it_is_told() {
    let (_workers, addresses) = two();
    let model = tiny("f16", "q8_0");
    let mut command = over(&model, "trace");
    let (splits, devices) = ops(command.args(["--rpc", &addresses]).arg("-i").arg(picture()));
    assert_eq!((splits, devices("vision"), devices("text")), (1, vec!["CPU".into()], names(&["CPU", "RPC0", "RPC1"])));
    let mut command = over(&model, "trace");
    let (splits, devices) =
        ops(command.args(["--rpc", &addresses, "--vision-device", "RPC1", "-ngl", "2"]).arg("-i").arg(picture()));
    assert_eq!((splits, devices("vision")), (1, vec!["RPC1".into()]), "no operation is left to the CPU");
    assert_eq!(devices("text"), names(&["CPU", "RPC0", "RPC1"]));
    let plan = run(over(&model, "plan").args(["--rpc", &addresses, "-ngl", "3", "--json"])).json();
    let n_layers = |nth: usize| plan["layers_placed"][nth]["layers"].as_u64().unwrap();
    assert_eq!(n_layers(0) + n_layers(1), 3, "{plan}");
    let items = plan["phases"][1]["items"].as_array().unwrap();
    let on = items.iter().filter(|item| item["name"].as_str().unwrap().starts_with("on RPC") && item["device"] == true);
    assert_eq!(on.count(), 2, "{plan}");
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// Whatever else this build can compute on gives what the CPU gives, within what half precision costs; and nothing of the tower
/// falls back to the CPU.
#[test]
fn every_device_is_near_the_cpu() {
    let worker = Worker::start();
    let doctor = run(qvl().args(["doctor", "--json"])).json();
    let is_offload = |device: &&Value| device["kind"] == "gpu" || device["kind"] == "integrated";
    let found = doctor["devices"].as_array().unwrap().iter().filter(is_offload);
    let found = found.map(|device| vec!["--device".to_owned(), device["name"].as_str().unwrap().to_owned()]);
    let all: Vec<_> = found.chain([vec!["--rpc".to_owned(), worker.address.clone()]]).collect();
    let model = tiny("f16", "f16");
    let trace = |flags: &[String]| {
        let device = if flags[0] == "--rpc" { "rpc0" } else { &flags[1] };
        let mut command = over(&model, "trace");
        command.args(flags).args(["--vision-device", device]).arg("-i").arg(picture());
        command
    };
    // More than the 128 positions that it was trained for: angles have another base, and queries factors of their own.
    let many_words = "one and two and three ".repeat(40);
    let long = |flags: &[String]| {
        let mut command = qvl();
        command.args(["trace", "-m"]).arg(random().text).args(flags).args(["-n", "3", "--raw", &many_words]);
        traced(&mut command).f32s("logits").data
    };
    let on_cpu = ["--device".to_owned(), "cpu".to_owned()];
    let (cpu, long_on_cpu) = (traced(trace(&on_cpu).arg(QUESTION)), long(&on_cpu));
    for flags in all {
        let tensors = traced(trace(&flags).arg(QUESTION));
        for (name, bound) in [("image.0.embedding", 2e-3), ("logits", 1e-2)] {
            let distance = relative_l2(&tensors.f32s(name).data, &cpu.f32s(name).data);
            println!("{} {name}: {distance:.1e}", flags.join(" "));
            assert!(distance < bound, "{flags:?} {name}: relative L2 {distance:.1e}");
        }
        let distance = relative_l2(&long(&flags), &long_on_cpu);
        println!("{} long logits: {distance:.1e}", flags.join(" "));
        assert!(distance < 1e-2, "{flags:?}: relative L2 {distance:.1e} beyond the trained length");
        let (splits, devices) = ops(&mut trace(&flags));
        assert_eq!((splits, devices("vision").len()), (1, 1), "{flags:?}: {:?}", devices("vision"));
        assert!(!devices("vision").contains(&"CPU".to_owned()), "{flags:?}");
    }
}

#[test]
fn what_is_not_there_is_a_usage_error() {
    let model = tiny("f16", "f16");
    let ask = |flags: &[&str]| run(over(&model, "ask").arg("-q").args(flags).arg("hi"));
    ask(&["--device", "cuda7"]).fails(2, "device \"cuda7\" is not there (there are: ");
    ask(&["--vision-device", "abacus"]).fails(2, "device \"abacus\" is not there");
    ask(&["--rpc", "nonsense"]).fails(2, "--rpc nonsense: ");
    // Nobody listens at a port that was just given back.
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    ask(&["--rpc", &gone]).fails(2, "start one there with: qvl worker");
    let worker = Worker::start();
    ask(&["--rpc", &format!("{0},{0}", worker.address)]).fails(2, "is named twice");
    run(qvl().args(["worker", "--host", "192.0.2.1"])).fails(1, "cannot listen at 192.0.2.1:50052");
    run(qvl().args(["worker", "--device", "cuda7"])).fails(2, "device \"cuda7\" is not there");
}

#[test]
fn layers_without_a_device_are_the_cpus() {
    let model = tiny("f16", "f16");
    let ask = |flags: &[&str]| {
        run(over(&model, "ask").args(["--temp", "0", "-n", "8", "--device", "cpu"]).args(flags).arg("hi"))
    };
    let plain = ask(&[]).ok();
    assert!(!plain.err.contains("device"), "{plain:?}");
    let all = ask(&["-ngl", "all"]).ok();
    assert_eq!(all.out, plain.out);
    assert!(all.err.contains("note: there is no device for layers"), "{all:?}");
}

/// A machine in the middle: what is sent to `address` goes through it, and how many bytes that were.
fn counted(address: &str) -> (String, Arc<AtomicU64>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (here, there) = (listener.local_addr().unwrap().to_string(), address.to_owned());
    let n_sent = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&n_sent);
    std::thread::spawn(move || {
        for near in listener.incoming() {
            let (mut near, mut far) = (near.unwrap(), TcpStream::connect(&there).unwrap());
            let (mut near_too, mut far_too) = (near.try_clone().unwrap(), far.try_clone().unwrap());
            let count = Arc::clone(&count);
            std::thread::spawn(move || {
                let mut bytes = vec![0; 1 << 16];
                while let Ok(n @ 1..) = near.read(&mut bytes) {
                    count.fetch_add(n as u64, Ordering::Relaxed);
                    far.write_all(&bytes[..n]).unwrap();
                }
                let _ = far.shutdown(Shutdown::Both);
            });
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut far_too, &mut near_too);
                let _ = near_too.shutdown(Shutdown::Both);
            });
        }
    });
    (here, n_sent)
}

/// Four pictures of a batch, or of examples: the tower travels once.
#[test]
fn the_tower_comes_to_its_device_once() {
    let (worker, model) = (Worker::start(), tiny("f16", "q8_0"));
    let dir = tempfile::tempdir().unwrap();
    let pictures = std::fs::read_dir(repository("models/qvl-tiny/heldout")).unwrap().map(|entry| entry.unwrap().path());
    let pictures: Vec<_> = pictures.filter(|path| path.extension().is_some_and(|e| e == "png")).take(4).collect();
    let line = |path: &std::path::PathBuf| {
        serde_json::json!({"image": path, "prompt": "What is it?", "answer": "A star."}).to_string() + "\n"
    };
    let questions = dir.path().join("questions.jsonl");
    std::fs::write(&questions, pictures.iter().map(line).collect::<String>()).unwrap();
    let n_bytes = std::fs::metadata(&model.mmproj).unwrap().len();
    let check = |subcommand: &str, flags: &[&str], output: &str| {
        let (address, n_sent) = counted(&worker.address);
        let mut command = over(&model, subcommand);
        command.args(["--rpc", &address, "--vision-device", "rpc0", "-ngl", "0"]).args(flags);
        run(command.arg(&questions).arg(output).arg(dir.path().join(subcommand))).ok();
        let n_sent = n_sent.load(Ordering::Relaxed);
        // Graphs and pictures are the rest.
        assert!(n_sent > n_bytes && n_sent < n_bytes * 2, "{subcommand}: {n_sent} bytes for a tower of {n_bytes}");
    };
    check("batch", &["-n", "1", "--no-cache"], "-o");
    check("quality", &[], "--write-reference");
}

/// It holds the weights and not the cache: the CPU goes on, and says so.
#[test]
#[cfg(target_os = "linux")]
fn a_worker_without_room_for_the_cache() {
    let (worker, model) = (Worker::start(), tiny("f16", "f16"));
    let ask = |flags: &[&str], n_ctx: &str| {
        let mut command = over(&model, "ask");
        command.args(["--temp", "0", "-n", "4", "-ctk", "f32", "-ctv", "f32", "-c", n_ctx]).args(flags);
        run(command.arg("hi")).ok()
    };
    let flags = ["--rpc", &worker.address, "-ngl", "all"];
    let before = ask(&flags, "256");
    assert!(!before.err.contains("the CPU computes"), "{before:?}");
    // What it has now, and the weights once more; the cache of 8192 positions is 64 MiB.
    let status = std::fs::read_to_string(format!("/proc/{}/status", worker.child.id())).unwrap();
    let size = status.lines().find_map(|line| line.strip_prefix("VmSize:")).unwrap();
    let size: u64 = size.trim().trim_end_matches(" kB").parse().unwrap();
    let limit = format!("--as={}", (size << 10) + (24 << 20));
    let limited = Command::new("prlimit").args(["--pid", &worker.child.id().to_string(), &limit]).status().unwrap();
    assert!(limited.success());
    let after = ask(&flags, "8192");
    assert!(after.err.contains("cache; the CPU computes all layers instead"), "{after:?}");
    assert_eq!(after.out, ask(&["--device", "cpu"], "8192").out);
}

/// Nothing that listens there answers as a worker, or at all.
#[test]
fn what_is_no_worker_is_a_usage_error() {
    let model = tiny("f16", "f16");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let ask = || run(over(&model, "ask").args(["-q", "--rpc", &address, "hi"]));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 64]);
            let _ = stream.write_all(b"HTTP/1.0 400 Bad Request\r\n\r\n");
        });
        ask().fails(2, "what listens there is no qvl worker");
    });
    // The system accepts, and nobody reads.
    ask().fails(2, "no answer within 5 s");
}

/// It says hello and then something else, or dies at work: one line, no abort.
#[test]
fn a_worker_that_goes_away() {
    const LINE: &str = "a machine of --rpc has gone away, or what listens there is no qvl worker";
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let server = std::thread::spawn(move || {
        // Whether it answers at all, and then what is asked for.
        let answers = [&28u64.to_le_bytes()[..], b"HTTP/1.0 400 Bad Request\r\n\r\n"];
        for (answer, stream) in answers.into_iter().zip(listener.incoming()) {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 64]);
            let _ = stream.write_all(answer);
        }
    });
    let model = tiny("f16", "f16");
    run(over(&model, "ask").args(["-q", "--rpc", &address, "hi"])).fails(1, LINE);
    server.join().unwrap();

    let mut worker = Worker::start();
    let mut command = over(&model, "ask");
    command.args(["-q", "--rpc", &worker.address, "--raw", "--temp", "1", "-n", "400", "--min-p", "0", "The"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = child.unwrap();
    // Its first words: it is at work.
    child.stdout.as_mut().unwrap().read_exact(&mut [0; 2]).unwrap();
    worker.child.kill().unwrap();
    let ran = Ran::from(child.wait_with_output().unwrap());
    assert!(ran.code == 1 && ran.err.lines().count() == 1 && ran.err.contains(LINE), "{ran:?}");
}
