use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};

use super::*;

fn inode(listener: &TcpListener) -> u32 {
    let path = format!("/proc/self/fd/{}", listener.as_raw_fd());
    socket_inode(fs::read_link(path).unwrap().to_str().unwrap()).unwrap()
}

#[test]
fn own_memory_is_read() {
    let secret = *b"an address of a peer";
    let address = secret.as_ptr() as u64;
    let mut copy = [0; 20];
    let thread = nix::unistd::gettid().as_raw().cast_unsigned();
    assert_eq!(read_memory(thread, address, &mut copy).unwrap(), 20);
    assert_eq!(copy, secret);
    let error = read_memory(thread, 8, &mut copy).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EFAULT));
    let error = read_memory(u32::MAX >> 1, address, &mut copy).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ESRCH));
}

#[test]
fn memory_of_a_child_is_read_by_its_proc_file_too() {
    let address = b"fixed text of this program".as_ptr() as u64;
    let mut copy = [0; 5];
    let file = File::open("/proc/thread-self/mem").unwrap();
    assert_eq!(file.read_at(&mut copy, address).unwrap(), 5);
    assert_eq!(&copy, b"fixed");
}

#[test]
fn thread_belongs_to_this_process() {
    let thread = std::thread::spawn(|| {
        let thread = nix::unistd::gettid().as_raw().cast_unsigned();
        (thread, group_of(thread).unwrap())
    });
    let (thread, group) = thread.join().unwrap();
    assert_ne!(thread, group);
    assert_eq!(group, std::process::id());
    assert!(group_of(u32::MAX >> 1).is_err());
}

#[test]
fn name_shows_no_control_characters() {
    assert_eq!(printable(b"bird\n"), "bird");
    assert_eq!(
        printable(b"a\x1b[2J\xff\nb\n"),
        "a\u{fffd}[2J\u{fffd}\u{fffd}b"
    );
    let mut child = Command::new("/bin/cat")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut to = child.stdin.take().unwrap();
    io::Write::write_all(&mut to, b"x").unwrap();
    // The program has its name once it runs.
    let echo = child.stdout.take().unwrap().read_exact(&mut [0]);
    let found = name(child.id());
    drop(to);
    child.wait().unwrap();
    echo.unwrap();
    assert_eq!(found.as_deref(), Some("cat"));
    assert_eq!(name(u32::MAX >> 1), None);
}

#[test]
fn sockets_are_found_and_strangers_missing() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let wanted = HashSet::from([inode(&listener), u32::MAX]);
    let holder = Holder {
        pid: std::process::id(),
        fd: listener.as_raw_fd(),
    };
    for first in [vec![], vec![std::process::id()], vec![u32::MAX >> 1]] {
        let found = holders(&wanted, &first).unwrap();
        assert_eq!(found, HashMap::from([(inode(&listener), holder)]));
    }
    assert_eq!(socket_inode("socket:[12]"), Some(12));
    assert_eq!(socket_inode("pipe:[12]"), None);
    assert_eq!(socket_inode("socket:[x]"), None);
}

#[test]
fn network_namespace_is_that_of_the_thread() {
    let own = network_namespace(None).unwrap();
    assert_eq!(network_namespace(Some(std::process::id())).unwrap(), own);
    assert!(network_namespace(Some(u32::MAX >> 1)).is_err());
}

#[test]
fn threaded_process_is_not_split() {
    let (stop, wait) = std::sync::mpsc::channel::<()>();
    let other = std::thread::spawn(move || wait.recv());
    let error = detach().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    drop(stop);
    other.join().unwrap().unwrap_err();
}

#[test]
fn detached_process_is_in_a_session_of_its_own() {
    let (mut from, to) = io::pipe().unwrap();
    let (child, result) = crate::test_support::run_forked(move || {
        if detach()? == Side::Detached {
            let session = nix::unistd::getsid(None)?;
            let mut line = format!("{session} {}", nix::unistd::getppid());
            line.push_str(&format!(" {}", nix::unistd::getpid()));
            io::Write::write_all(&mut &to, line.as_bytes())?;
        }
        Ok(())
    });
    result.unwrap();
    let mut line = String::new();
    from.read_to_string(&mut line).unwrap();
    let numbers: Vec<u32> = line
        .split(' ')
        .map(|number| number.parse().unwrap())
        .collect();
    let [session, parent, own] = numbers[..] else {
        panic!("{line}");
    };
    assert_ne!(session, own);
    assert_ne!(parent, child);
    assert_ne!(
        session,
        nix::unistd::getsid(None).unwrap().as_raw().cast_unsigned()
    );
}

#[test]
fn class_of_a_program_is_in_its_header() {
    assert_eq!(
        is_64_bit_program(Path::new("/proc/self/exe")).unwrap(),
        Some(true)
    );
    assert_eq!(is_64_bit_program(Path::new("/dev/null")).unwrap(), None);
    let path = std::env::temp_dir().join(format!("ao-sys-elf-{}", std::process::id()));
    fs::write(&path, b"\x7fELF\x01\x01").unwrap();
    let class = is_64_bit_program(&path);
    fs::remove_file(&path).unwrap();
    assert_eq!(class.unwrap(), Some(false));
    assert!(is_64_bit_program(Path::new("/nonexistent")).is_err());
}
