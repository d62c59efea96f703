//! Live events: replay from the journal and then live, without a gap, whatever is written meanwhile.

use futures_util::StreamExt;
use ionet_api::rest::{EventFilter, EventView};
use ionet_domain::account::ActivityKind;
use ionet_domain::command::CommandBody;
use ionet_domain::{Actor, Address, Command};
use ionet_server::Handle;

use crate::http_kit::{Network, run, soon, wallet};

const WRITERS: u8 = 4;
const LINES: usize = 150;

/// Writes lines of activity for an account, some of them in concert.
async fn write(handle: Handle, account: Address) {
    for line in 0..LINES {
        let particulars = format!("line {line}");
        let body = CommandBody::LogActivity { account, kind: ActivityKind::SignedIn, key: None, particulars };
        handle.submit(Command { id: None, actor: Actor::Server, body }).await.expect("a line");
    }
}

/// Reads a stream to its end.
async fn read(response: reqwest::Response) -> Vec<EventView> {
    let mut bytes = response.bytes_stream();
    let mut text = String::new();
    while let Some(part) = bytes.next().await {
        text.push_str(std::str::from_utf8(&part.expect("bytes")).expect("ASCII JSON"));
    }
    let frames = text.split("\n\n").filter_map(|frame| {
        let line = |name: &str| frame.lines().find_map(|line| line.strip_prefix(name).map(str::trim_start));
        let event: EventView = serde_json::from_str(line("data:")?).expect("an event");
        assert_eq!(line("id:"), Some(event.seq.to_string().as_str()));
        Some(event)
    });
    frames.collect()
}

fn open(network: &Network, query: &str) -> reqwest::RequestBuilder {
    reqwest::Client::new().get(format!("{}/v1/events?{query}", network.url()))
}

#[test]
fn replay_and_live_events_join_without_a_gap() {
    run(async {
        let network = Network::start().await;
        let total = usize::from(WRITERS) * LINES;
        let before = usize::try_from(network.head_seq()).expect("few");
        let account = |writer: u8| wallet(100 + writer).address();
        let writers: Vec<_> =
            (0..WRITERS).map(|n| tokio::spawn(write(network.handle().clone(), account(n)))).collect();
        let half = network.head_seq() + u64::try_from(total / 2).expect("few");
        let all = format!("after=0&limit={}", before + total);
        let from_start = tokio::spawn(read(open(&network, &all).send().await.expect("events")));
        let one = format!("after=0&limit={LINES}&subject={}", account(2));
        let of_one = tokio::spawn(read(open(&network, &one).send().await.expect("events")));
        network.until("half of it is written", |view| (view.head.seq >= half).then_some(())).await;
        let late = tokio::spawn(read(open(&network, &all).send().await.expect("events")));
        let middle = format!("limit={}", before + total - usize::try_from(half).expect("few"));
        let resumed = open(&network, &middle).header("Last-Event-ID", half).send().await.expect("events");
        let resumed = tokio::spawn(read(resumed));
        for writer in writers {
            soon("the writers", writer).await.expect("written");
        }
        let seqs = |events: &[EventView]| events.iter().map(|event| event.seq).collect::<Vec<_>>();
        let whole: Vec<u64> = (1..).take(before + total).collect();
        for stream in [from_start, late] {
            assert_eq!(seqs(&soon("a whole stream", stream).await.expect("read")), whole);
        }
        assert_eq!(
            seqs(&soon("the rest", resumed).await.expect("read")),
            whole[usize::try_from(half).expect("few")..]
        );
        let of_one = soon("one account's", of_one).await.expect("read");
        let subject = Some(account(2).to_string());
        let filter = EventFilter { subject, limit: Some(1000), ..EventFilter::default() };
        let stored = network.nobody().journal(&filter).await.expect("journal");
        assert_eq!(of_one.len(), LINES);
        for (live, stored) in of_one.iter().zip(&stored) {
            assert_eq!(live, &EventView { text: None, ..stored.clone() });
        }
        network.stop().await;
    });
}

#[test]
fn without_a_place_only_what_comes_is_told() {
    run(async {
        let network = Network::start().await;
        let response = open(&network, "limit=1").send().await.expect("events");
        let head = network.head_seq();
        network.fund(wallet(1).address(), 5).await;
        let events = soon("one event", read(response)).await;
        assert_eq!((events.len(), events[0].seq), (1, head + 1));
        let stored = network.nobody().journal(&EventFilter { after: head, ..EventFilter::default() }).await;
        assert_eq!(events[0], EventView { text: None, ..stored.expect("journal")[0].clone() });
        network.stop().await;
    });
}
