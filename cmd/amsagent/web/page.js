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

async function refresh() {
	if (busy) return;
	busy = true;
	try {
		const r = await fetch(location.href, { headers: { Accept: 'text/html' } });
		if (!r.ok) throw new Error(r.status);
		const next = new DOMParser().parseFromString(await r.text(), 'text/html');
		document.title = next.title;
		document.getElementById('page').className = next.getElementById('page').className;
		for (const id of ['icon', 'headline', 'failed', 'notes', 'drains', 'groups', 'caption', 'head', 'facts']) replace(id, next);
		rows(next);
		tag = next.body.dataset.tag;
	} catch { /* the next event, or the timer, shows it */ }
	busy = false;
}

// A page that nobody sees holds no stream: a browser opens six connections to a host.
function follow() {
	stream?.close();
	if (document.hidden) return;
	stream = new EventSource('/live?page=' + encodeURIComponent(location.pathname + location.search));
	stream.onmessage = e => {
		answered = Date.now();
		const [is, ...asof] = e.data.split(' ');
		document.getElementById('asof').textContent = asof.join(' ');
		if (is !== tag) refresh();
	};
}

follow();
document.addEventListener('visibilitychange', () => { answered = Date.now(); follow(); });
document.querySelector('form')?.addEventListener('change', e => e.currentTarget.requestSubmit());
setInterval(() => {
	const gone = !document.hidden && Date.now() - answered > 10000;
	lost.hidden = !gone;
	document.body.classList.toggle('lost', gone);
}, 1000);
