//! Who I am and what I hold: login, wallet, keys, ledger, activity.

use ionet_api::rest::{ActivityLine, EventFilter, Holding, KeyView, LedgerLine, NewKey, SendRequest};
use ionet_domain::account::Scope;
use ionet_domain::id::TransferKind;
use ionet_domain::ledger::{Step, Transfer};
use ionet_domain::money::decimal;
use ionet_domain::{Address, Asset, CommandId, TransferId};
use serde::Serialize;
use serde_json::json;

use crate::args::{ActivityArgs, KeysCommand, LedgerArgs, LoginArgs, PageArgs, WalletArgs, WalletCommand};
use crate::context::{Context, now_ms, random};
use crate::error::{CliError, Result};
use crate::units::{moment, usd};

/// `ionet login`
pub(crate) async fn login(context: &Context, args: &LoginArgs) -> Result {
    let url = context.url()?;
    let (wallet, made) = context.wallet_or_new()?;
    let (client, network) = context.visitor().await?;
    let local = network.local;
    let session = context.sign_in(client, network, &wallet).await?;
    context.remember(&url)?;
    if args.new_key {
        return make_key(context, &session.client, args).await;
    }
    let (account, name, path) = (wallet.address(), &session.network.name, context.path("wallet.json"));
    let answer = json!({
        "account": account, "url": url, "network": name, "wallet_file": path, "wallet_made": made, "local": local
    });
    context.out.answer(&answer, |out| {
        out.line(format!("signed in to {name} at {url} as {account}"));
        if made {
            out.line(format!("new wallet key in {}; copy it to a safe place", path.display()));
        }
    });
    Ok(())
}

/// Makes an API key and prints it once.
async fn make_key(context: &Context, client: &ionet_api::Client, args: &LoginArgs) -> Result {
    let key = NewKey {
        label: args.label.clone(),
        scopes: args.scopes.iter().copied().collect(),
        cap_micro_usd: args.cap,
        lifetime_ms: args.lifetime_ms,
    };
    let made = client.make_key(&key).await?;
    context.out.answer(&made, |out| {
        out.line(format!("{}  scopes {}  cap {}", made.id, scope_list(&args.scopes), usd(args.cap)));
        out.line(format!("IONET_API_KEY={}", made.token.expose()));
        out.note("shown this once; keep it secret ('ionet keys revoke' ends it)");
    });
    Ok(())
}

fn scope_list<'a>(scopes: impl IntoIterator<Item = &'a Scope>) -> String {
    let names: Vec<_> = scopes.into_iter().map(|scope| format!("{scope:?}").to_lowercase()).collect();
    names.join(",")
}

/// `ionet wallet`
pub(crate) async fn wallet(context: &Context, args: &WalletArgs) -> Result {
    match &args.command {
        None | Some(WalletCommand::Show) => show_wallet(context).await,
        Some(WalletCommand::Address) => address(context),
        Some(WalletCommand::Send { to, amount, asset, yes }) => {
            send(context, *to, *asset, amount, *yes).await
        }
    }
}

async fn show_wallet(context: &Context) -> Result {
    let session = context.session().await?;
    let wallet = session.client.wallet().await?;
    context.out.answer(&wallet, |out| {
        out.line(wallet.account);
        out.table(
            &["ASSET", "AVAILABLE", "IN ORDERS", "EARNED"],
            &[1, 2, 3],
            wallet.holdings.iter().map(holding_row).collect(),
        );
        if session.network.local {
            out.line("a local network: this money is worth nothing");
        }
    });
    Ok(())
}

fn holding_row(holding: &Holding) -> Vec<String> {
    let show = |amount| decimal(amount, holding.asset.decimals());
    let asset = holding.asset.name().to_owned();
    vec![asset, show(holding.available), show(holding.in_orders), show(holding.earned)]
}

fn address(context: &Context) -> Result {
    let wallet = context.wallet()?.ok_or_else(|| {
        CliError::refused("no_wallet", format!("{} has no wallet key", context.data_dir.display()))
    })?;
    let address = wallet.address();
    context.out.answer(&json!({ "account": address }), |out| out.line(address));
    Ok(())
}

async fn send(context: &Context, to: Address, asset: Asset, amount: &str, yes: bool) -> Result {
    let amount = asset.parse(amount)?;
    context.out.confirm(&format!("send {} to {to}?", asset.show(amount)), yes)?;
    let session = context.session().await?;
    let scope = CommandId::from_parts(now_ms(), random()?).bits();
    let id = TransferId { scope, kind: TransferKind::Send, n: 0 };
    let wallet = session.client.send(&SendRequest { id, to, asset, amount }).await?;
    context.out.answer(&json!({ "transfer": id, "wallet": wallet }), |out| {
        out.line(format!("sent {} to {to} (transfer {id})", asset.show(amount)));
    });
    Ok(())
}

/// `ionet keys`
pub(crate) async fn keys(context: &Context, command: &KeysCommand) -> Result {
    let client = context.session().await?.client;
    match command {
        KeysCommand::Ls => {
            let keys = client.keys().await?;
            context.out.answer(&keys, |out| {
                let header = ["KEY", "LABEL", "SCOPES", "SPENT", "CAP", "UNTIL", "STATE"];
                out.table(&header, &[3, 4], keys.iter().map(key_row).collect());
            });
        }
        KeysCommand::Revoke { key } => {
            client.revoke_key(*key).await?;
            context.out.answer(&json!({ "revoked": key }), |out| out.line(format!("{key} is revoked")));
        }
    }
    Ok(())
}

fn key_row(key: &KeyView) -> Vec<String> {
    let state = if key.revoked {
        "revoked"
    } else if key.expires_ms <= now_ms() {
        "expired"
    } else {
        "works"
    };
    let (spent, cap) = (usd(key.spent_micro_usd), usd(key.cap_micro_usd));
    let scopes = scope_list(&key.scopes);
    vec![key.id.to_string(), key.label.clone(), scopes, spent, cap, moment(key.expires_ms), state.into()]
}

/// `ionet ledger`
pub(crate) async fn ledger(context: &Context, args: &LedgerArgs) -> Result {
    if args.books {
        return books(context).await;
    }
    let client = context.session().await?.client;
    let mut lines = client.ledger(&page(&args.page, args.subject.clone())).await?;
    if args.page.after.is_none() {
        lines.reverse();
    }
    show_lines(context, &lines, &lines.iter().map(ledger_row).collect::<Vec<_>>());
    Ok(())
}

/// The newest page, or the first one after a number.
fn page(page: &PageArgs, subject: Option<String>) -> EventFilter {
    EventFilter {
        subject,
        after: page.after.unwrap_or_default(),
        before: page.before,
        newest: page.after.is_none(),
        limit: Some(page.limit),
    }
}

fn show_lines<T: Serialize>(context: &Context, lines: &[T], rows: &[Vec<String>]) {
    context.out.answer(&lines, |out| {
        let header = ["SEQ", "WHEN", "AMOUNT", "STEP", "FROM", "TO", "TRANSFER"];
        out.table(&header, &[0, 2], rows.to_vec());
    });
}

fn ledger_row(line: &LedgerLine) -> Vec<String> {
    let Transfer { id, step, debit, credit, amount } = &line.transfer;
    vec![
        line.seq.to_string(),
        moment(line.at_ms),
        debit.asset.show(*amount),
        step_word(*step).to_owned(),
        debit.to_string(),
        credit.to_string(),
        id.to_string(),
    ]
}

fn step_word(step: Step) -> &'static str {
    match step {
        Step::Post => "posted",
        Step::Hold => "held",
        Step::PostHeld => "posted (was held)",
        Step::VoidHeld => "voided (was held)",
    }
}

async fn books(context: &Context) -> Result {
    let (client, _) = context.visitor().await?;
    let books = client.books().await?;
    context.out.answer(&books, |out| {
        let rows =
            books.balances.iter().map(|(account, amount)| vec![account.clone(), signed(account, *amount)]);
        out.table(&["ACCOUNT", "BALANCE"], &[1], rows.collect());
        out.line(format!("at event {} ({})", books.journal.seq, books.journal.hash));
    });
    Ok(())
}

/// A balance with its sign, in the asset that the account's name ends with.
fn signed(account: &str, amount: i64) -> String {
    let asset = account.rsplit(':').next().and_then(|name| name.parse::<Asset>().ok());
    let sign = if amount < 0 { "-" } else { "" };
    let digits = asset.map_or(0, Asset::decimals);
    format!("{sign}{}", decimal(amount.unsigned_abs(), digits))
}

/// `ionet activity`
pub(crate) async fn activity(context: &Context, args: &ActivityArgs) -> Result {
    let client = context.session().await?.client;
    let mut lines = client.activity(&page(&args.page, None)).await?;
    if args.page.after.is_none() {
        lines.reverse();
    }
    context.out.answer(&lines, |out| {
        out.table(
            &["SEQ", "WHEN", "WHAT", "KEY", "PARTICULARS"],
            &[0],
            lines.iter().map(activity_row).collect(),
        );
    });
    Ok(())
}

fn activity_row(line: &ActivityLine) -> Vec<String> {
    let kind = serde_json::to_value(line.kind).ok().and_then(|kind| kind.as_str().map(str::to_owned));
    let kind = kind.unwrap_or_default().replace('_', " ");
    let key = line.key.map_or_else(|| "wallet".to_owned(), |key| key.to_string());
    let particulars = line.particulars.clone().unwrap_or_else(|| "(erased)".to_owned());
    vec![line.seq.to_string(), moment(line.at_ms), kind, key, particulars]
}
