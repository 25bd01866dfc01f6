//! `kubectl port-forward`.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    time::Duration,
};

use crate::{command::Running, world::world};

#[test]
fn a_forwarded_port_echoes_on_several_connections() {
    let Some(world) = world() else { return };
    for (pod, websockets) in [("echo", "true"), ("echo", "false"), ("ws-echo", "true")] {
        let mut command = world.kubectl(&["port-forward", &format!("pod/{pod}"), ":7000"]);
        command.env("KUBECTL_PORT_FORWARD_WEBSOCKETS", websockets);
        let mut forward = Running::start(&mut command, false);
        // "Forwarding from 127.0.0.1:40001 -> 7000"
        let mut screen = forward.screen();
        let line = screen.line("Forwarding from 127.0.0.1:");
        let port: u16 = line.rsplit_once(':').unwrap().1.split(' ').next().unwrap().parse().unwrap();
        let payload: Vec<u8> = (0..2_000_000_u32).map(|number| (number % 253) as u8).collect();
        let connections: Vec<_> = (0..3)
            .map(|_| {
                let payload = payload.clone();
                std::thread::spawn(move || {
                    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
                    stream.set_read_timeout(Some(Duration::from_mins(1))).unwrap();
                    let mut writer = stream.try_clone().unwrap();
                    let sent = payload.clone();
                    let sending = std::thread::spawn(move || writer.write_all(&sent).unwrap());
                    let mut echoed = vec![0; payload.len()];
                    stream.read_exact(&mut echoed).unwrap();
                    sending.join().unwrap();
                    stream.shutdown(Shutdown::Both).unwrap();
                    assert!(echoed == payload);
                })
            })
            .collect();
        for connection in connections {
            connection.join().unwrap();
        }
        forward.kill();
    }
}
