// Follows the cluster: asks for this page again when its content has a new tag, and replaces what differs, by id.
'use strict';
const lost = document.getElementById('lost');
let answered = Date.now(), tag = document.body.dataset.tag, busy = false, stream;

function replace(id, next) {
	const old = document.getElementById(id), is = next.getElementById(id);
	if (old && is && old.outerHTML !== is.outerHTML) old.replaceWith(document.adoptNode(is));
}

// rows keeps the rows that did not change, so that focus and selection stay.
function rows(next) {
	const body = document.getElementById('rows'), is = next.getElementById('rows');
	if (!body || !is) return;
	const old = new Map([...body.children].map(row => [row.id, row]));
	[...is.children].forEach((row, i) => {
		const was = old.get(row.id);
		old.delete(row.id);
		let put = was;
		if (!was) put = document.adoptNode(row);
		else if (was.outerHTML !== row.outerHTML) {
			const focus = was.contains(document.activeElement);
			was.replaceWith(put = document.adoptNode(row));
			if (focus) put.querySelector('a')?.focus();
		}
		if (body.children[i] !== put) body.insertBefore(put, body.children[i] || null);
	});
	old.forEach(row => row.remove());
}

function fresh(asof) {
	answered = Date.now();
	document.getElementById('asof').textContent = asof;
}

async function refresh(asof) {
	if (busy) return;
	busy = true;
	try {
		const r = await fetch(location.href, { headers: { Accept: 'text/html' }, signal: AbortSignal.timeout(10000) });
		if (!r.ok && r.status !== 404) throw new Error(r.status);
		const next = new DOMParser().parseFromString(await r.text(), 'text/html');
		document.title = next.title;
		document.getElementById('page').className = next.getElementById('page').className;
		for (const id of ['icon', 'headline', 'failed', 'notes', 'drains', 'groups', 'caption', 'head', 'facts', 'advice']) replace(id, next);
		rows(next);
		tag = next.body.dataset.tag;
		fresh(asof);
	} catch { /* the next event, or the timer, shows it */ }
	busy = false;
}

// A page that nobody sees holds no stream: a browser opens six connections to a host.
function follow() {
	stream?.close();
	if (document.hidden) {
		document.getElementById('icon').href = '/icon.svg'; // nothing follows now
		return;
	}
	stream = new EventSource('/live?page=' + encodeURIComponent(location.pathname + location.search));
	stream.onmessage = e => {
		const [is, ...asof] = e.data.split(' ');
		if (is === tag) fresh(asof.join(' '));
		else refresh(asof.join(' '));
	};
}

follow();
document.addEventListener('visibilitychange', () => { answered = Date.now(); follow(); });
document.querySelector('form')?.addEventListener('change', e => e.currentTarget.requestSubmit());
setInterval(() => {
	const gone = !document.hidden && Date.now() - answered > 10000;
	lost.hidden = !gone;
	document.body.classList.toggle('lost', gone);
	if (stream?.readyState === EventSource.CLOSED) follow(); // a proxy answered in place of the server
}, 2000);
