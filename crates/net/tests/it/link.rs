//! The control link over real sockets.

use ionet_net::{
    EndpointId, Node, NodeAddr,
    link::{FRAME_LIMIT_BYTES, IrohLink, Link, LinkEvent, LinkListener, connect_link},
    relay::admit_all,
};

use crate::{admit, key, node, node_at, run, soon};

async fn next(hub: &mut IrohLink) -> LinkEvent {
    assert!(soon("an event", hub.ready()).await);
    hub.poll().expect("ready means there is one")
}

fn addr(node: &Node) -> NodeAddr {
    NodeAddr::direct(node.id(), node.bound())
}

#[test]
fn frames_go_both_ways_whole_and_in_order() {
    run(async {
        let (server, worker) = (node(1).await, node(2).await);
        let mut listener = LinkListener::start(&server, admit_all());
        let server_addr = addr(&server);
        let (ours, theirs) = tokio::join!(connect_link(&worker, &server_addr), listener.accept());
        let (mut ours, mut theirs) = (ours.expect("link"), theirs.expect("link"));
        assert_eq!((ours.peer(), theirs.peer()), (server.id(), worker.id()));
        let big = vec![7; FRAME_LIMIT_BYTES];
        for frame in [b"one".to_vec(), Vec::new(), big.clone()] {
            ours.send(frame.clone()).await.expect("send");
            assert_eq!(soon("frame", theirs.recv()).await.expect("recv"), frame);
        }
        theirs.send(b"back".to_vec()).await.expect("send");
        assert_eq!(soon("frame", ours.recv()).await.expect("recv"), b"back");
        let too_large = ours.send(vec![0; FRAME_LIMIT_BYTES + 1]).await.expect_err("over the limit");
        assert_eq!(too_large.code(), "net_frame_too_large");
        for number in 0..100_u32 {
            ours.send(number.to_be_bytes().to_vec()).await.expect("send");
        }
        ours.close().await;
        for number in 0..100_u32 {
            assert_eq!(soon("frame", theirs.recv()).await.expect("recv"), number.to_be_bytes());
        }
        assert_eq!(soon("end", theirs.recv()).await.expect_err("closed").code(), "net_closed");
    });
}

#[test]
fn a_stranger_is_not_admitted() {
    run(async {
        let (server, friend, stranger) = (node(1).await, node(2).await, node(3).await);
        let mut listener = LinkListener::start(&server, admit(&[2]));
        let refused = soon("refusal", connect_link(&stranger, &addr(&server))).await.expect_err("stranger");
        assert_eq!(refused.code(), "net_not_admitted");
        let server_addr = addr(&server);
        let (link, _) = tokio::join!(connect_link(&friend, &server_addr), listener.accept());
        link.expect("the friend is admitted");
        drop(listener);
        let gone = soon("refusal", connect_link(&friend, &addr(&server))).await.expect_err("stopped");
        assert_eq!(gone.code(), "net_no_service");
    });
}

#[test]
fn the_newer_link_replaces_the_older() {
    run(async {
        let server = node(1).await;
        let mut hub = IrohLink::start(&server, admit_all());
        let (first, second) = (node(2).await, node(2).await);
        let me = key(2).id();
        let mut older = connect_link(&first, &addr(&server)).await.expect("link");
        assert_eq!(next(&mut hub).await, LinkEvent::Up(me));
        let newer = connect_link(&second, &addr(&server)).await.expect("link");
        assert_eq!(next(&mut hub).await, LinkEvent::Down(me));
        assert_eq!(next(&mut hub).await, LinkEvent::Up(me));
        assert_eq!(soon("end", older.recv()).await.expect_err("replaced").code(), "net_replaced");
        newer.send(b"still here".to_vec()).await.expect("send");
        assert_eq!(next(&mut hub).await, LinkEvent::Frame(me, b"still here".to_vec()));
        drop(newer);
        assert_eq!(next(&mut hub).await, LinkEvent::Down(me));
        assert_eq!(hub.live().count(), 0);
    });
}

#[test]
fn a_worker_comes_back_to_a_restarted_server() {
    run(async {
        let worker = node(2).await;
        let me = worker.id();
        let first = node(1).await;
        let port = first.bound()[0].port();
        let mut hub = IrohLink::start(&first, admit_all());
        let mut link = connect_link(&worker, &addr(&first)).await.expect("link");
        assert_eq!(next(&mut hub).await, LinkEvent::Up(me));
        drop(hub);
        first.close().await;
        drop(first);
        assert_eq!(soon("end", link.recv()).await.expect_err("gone").code(), "net_closed");
        let second = soon("the port is free again", node_at(1, port)).await;
        let mut hub = IrohLink::start(&second, admit_all());
        let mut link = soon("reconnect", connect_link(&worker, &addr(&second))).await.expect("link");
        assert_eq!(next(&mut hub).await, LinkEvent::Up(me));
        hub.send(me, b"hello again".to_vec());
        hub.send(EndpointId([9; 32]), b"to nobody".to_vec());
        assert_eq!(soon("frame", link.recv()).await.expect("recv"), b"hello again");
    });
}
