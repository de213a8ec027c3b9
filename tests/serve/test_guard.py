"""Who is served: by which names, for which pages, and how many at once from one address."""

import httpx
import pytest
from serve.apps import (
    HEAD,
    PICTURE,
    REQUEST,
    Gate,
    build,
    connect,
    connections,
    encoded,
    in_progress,
    listening,
    received,
    serving,
    steady,
    street,
    wait_for,
)
from serve.browser import with_browser

from fassd.serve.guard import network_of

OTHER = "127.0.0.2"

# ------------------------------------------------------------------------------------------ hosts


@pytest.fixture(scope="module")
def local():
    """A client of a server that has a list of hosts."""
    with serving(hosts={"seg.example"}) as (client, _):
        yield client


@pytest.mark.parametrize(
    "host",
    [
        "localhost", "localhost:8000", "localhost.", "LocalHost:1", "127.0.0.1", "127.8.7.6:8000",
        "[::1]", "[::1]:8000", "[0:0:0:0:0:0:0:1]:80", "seg.example", "Seg.Example:443",
    ],
)  # fmt: skip
def test_names_of_this_machine_and_allowed_ones_are_served(local, host):
    assert local.get("/healthz", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example",
        "evil.example:127.0.0.1", "evil@localhost", "localhost@evil.example", "localhost,evil",
        "localhost/evil", "xlocalhost", "seg.example.evil", "x.seg.example", "192.168.1.5",
        "0.0.0.0", "[::2]", "[::1", "::1", "[evil]", "", " ", "a" * 5000,
    ],
)  # fmt: skip
def test_other_names_are_refused(local, host):
    for method, path in [("GET", "/"), ("GET", "/healthz"), ("POST", "/v1/segment")]:
        answer = local.request(method, path, headers={"Host": host})
        assert answer.status_code == 403 and len(answer.text) < 200
        assert "--allow-host" in answer.json()["detail"]
        assert "default-src 'self'" in answer.headers["content-security-policy"]


def test_a_request_without_a_host_is_refused():
    with listening(hosts=set()) as url:
        for version, status in (("1.0", b"403"), ("1.1", b"400")):  # 1.1 requires it
            with connect(url) as connection:
                request = f"GET /healthz HTTP/{version}\r\nConnection: close\r\n\r\n"
                connection.sendall(request.encode())
                assert received(connection).split()[1] == status


def test_any_name_is_served_without_a_list(client):
    assert client.get("/healthz", headers={"Host": "anything.example"}).status_code == 200


# ------------------------------------------------------------------------------------------ pages

OWN = {"Host": "seg.example:8000"}


@pytest.mark.parametrize(
    "headers",
    [
        {},  # curl, Python
        {"Origin": "http://seg.example:8000"},
        {"Origin": "https://seg.example:8000"},  # a proxy with encryption
        {"Sec-Fetch-Site": "same-origin", "Origin": "https://proxy.example"},  # that changes Host
        {"Sec-Fetch-Site": "none"},
    ],
)
def test_own_pages_and_programs_post(client, headers):
    files = {"image": encoded(street())}
    answer = client.post("/v1/segment", files=files, headers={**OWN, **headers})
    assert answer.status_code == 200


FOREIGN = [
    {"Sec-Fetch-Site": "cross-site", "Origin": "http://evil.example"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site", "Origin": "http://seg.example:3000"},
    {"Origin": "http://evil.example"},
    {"Origin": "http://seg.example"},  # another port
    {"Origin": "http://seg.example:8000.evil.example"},
    {"Origin": "http://evil.example/seg.example:8000"},
    {"Origin": "null"},
    {"Origin": ""},
    {"Origin": "http://[::1"},
]


@pytest.mark.parametrize("headers", FOREIGN)
def test_pages_of_other_sites_are_refused(client, headers):
    headers = {**OWN, **headers}
    answer = client.post("/v1/segment", files={"image": PICTURE}, headers=headers)
    assert answer.status_code == 403 and "other sites" in answer.json()["detail"]
    assert not [name for name in answer.headers if name.startswith("access-control")]
    for path in ("/v1/example", "/v1/models"):
        assert client.get(path, headers=headers).status_code == 403
    asked = {**headers, "Access-Control-Request-Method": "POST"}
    assert client.options("/v1/segment", headers=asked).status_code == 403
    upgrade = {**headers, "Connection": "Upgrade", "Upgrade": "websocket"}
    assert client.get("/v1/models", headers=upgrade).status_code == 403


def test_a_link_from_another_site_opens_the_page(client):
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    opened = client.get("/", headers={**OWN, **link, "Sec-Fetch-Dest": "document"})
    assert opened.status_code == 200
    frame = client.get("/", headers={**OWN, **link, "Sec-Fetch-Dest": "iframe"})
    assert frame.status_code == 403
    form = {**OWN, **link, "Sec-Fetch-Dest": "document", "Origin": "http://evil.example"}
    answer = client.post("/v1/segment", files={"image": PICTURE}, headers=form)
    assert answer.status_code == 403


def test_a_page_behind_a_proxy_that_changes_the_host(local):
    headers = {"Host": "localhost:8000", "Origin": "http://seg.example"}
    answer = local.post("/v1/segment", files={"image": encoded(street())}, headers=headers)
    assert answer.status_code == 200


@pytest.mark.parametrize("origin", ["http://127.0.0.1:3000", "http://localhost:3000"])
def test_a_page_of_another_port_of_this_machine_is_refused(origin):
    with serving(hosts={"127.0.0.1", "localhost"}) as (client, _):
        headers = {"Host": "127.0.0.1:8000", "Origin": origin}
        answer = client.post("/v1/segment", files={"image": PICTURE}, headers=headers)
    assert answer.status_code == 403


# A page's picture as a form, as `fetch` sends it to any site without asking that site first.
ATTACK = """
(async () => {
  const canvas = document.createElement('canvas');
  canvas.width = canvas.height = 64;
  const picture = await new Promise(done => canvas.toBlob(done));
  const form = new FormData();
  form.append('image', picture, 'a.png');
  const options = { method: 'POST', mode: '%s', body: form };
  return fetch('%s', options).then(answer => answer.status, error => error.message);
})()
"""


@with_browser
def test_a_page_of_another_site_cannot_use_the_server_in_a_browser(browser):
    with listening(hosts=set()) as url, listening() as other:
        segment = f"{url}/v1/segment"
        foreign = other.replace("127.0.0.1", "attack.example")
        for page in (foreign, other):  # of another site; of this one, at another port
            # Without the policy of our page, which forbids it to reach others.
            browser.call("Page.setBypassCSP", enabled=True)
            browser.open(f"{page}/v1/models")
            assert browser.evaluate(ATTACK % ("no-cors", segment)) == "Failed to fetch"
        browser.call("Page.setBypassCSP", enabled=False)
        counts = httpx.get(f"{url}/metrics").text
        assert 'route="(unknown)",status="403"} 2.0' in counts
        assert 'route="/v1/segment"' not in counts

        browser.open(f"{url}/v1/models")
        assert browser.evaluate(ATTACK % ("same-origin", segment)) == 200
        rebound = url.replace("127.0.0.1", "rebound.example")
        browser.open(f"{rebound}/v1/models")
        assert "'rebound.example:" in browser.evaluate("document.body.textContent")
        assert browser.evaluate(ATTACK % ("same-origin", "/v1/segment")) == 403


# ----------------------------------------------------------------------------------------- shares


HALF = REQUEST[: -len(PICTURE) + 9]


def posted(url, address="127.0.0.1", **headers):
    transport = httpx.HTTPTransport(local_address=address)
    with httpx.Client(base_url=url, transport=transport, timeout=10, headers=headers) as client:
        return client.post("/v1/segment", files={"image": PICTURE}).status_code


@pytest.fixture
def url():
    """The address of a server whose network is quick."""
    with listening(load=steady) as url:
        yield url


@pytest.mark.parametrize("sent", [b"", b"G", HEAD, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"])
def test_idle_connections_shut_nobody_out(url, sent):
    with connections(url, 80, sent):
        assert httpx.get(f"{url}/healthz").status_code == 200
        assert posted(url) == posted(url, OTHER) == 200


@pytest.mark.parametrize("path", [b"/v1/example", b"/healthz"])
def test_clients_that_do_not_read_shut_nobody_out(monkeypatch, path):
    monkeypatch.setattr("fassd.serve.app.REQUESTS", 6)
    many = 200 * (b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n" % path)
    with listening(load=steady) as url, connections(url, 12, many):
        assert httpx.get(f"{url}/healthz").status_code == 200
        assert posted(url, OTHER) == 200


def test_slow_uploads_shut_nobody_out(url):
    with connections(url, 40, HALF):
        wait_for(lambda: in_progress(url) == 24)
        assert httpx.get(f"{url}/healthz").status_code == 200
        assert posted(url, OTHER) == 200
        assert posted(url) == 429


def test_a_proxys_clients_have_their_own_shares(monkeypatch):
    monkeypatch.setattr("fassd.serve.app.UPLOADS", 4)
    slow = HALF.replace(b"Host", b"X-Forwarded-For: 10.0.0.1\r\nHost")
    with listening(load=steady) as url, connections(url, 3, slow):
        wait_for(lambda: in_progress(url) == 3)
        for client, status in (("9.9.9.9, 10.0.0.1", 429), ("10.0.0.2", 200)):
            assert posted(url, **{"X-Forwarded-For": client}) == status


def test_one_address_does_not_fill_the_line():
    gate = Gate()
    app, engine = build(load=lambda choice: gate, batch=1, queue=4)
    with listening(app) as url, connections(url, 8, REQUEST) as many, connect(url, OTHER) as other:
        wait_for(lambda: engine.waiting == 3 and in_progress(url) == 4)
        other.sendall(REQUEST)
        wait_for(lambda: engine.waiting == 4)
        gate.open.set()
        assert other.recv(100).startswith(b"HTTP/1.1 200")
        assert sorted(each.recv(100)[9:12] for each in many) == 4 * [b"200"] + 4 * [b"429"]


def test_requests_at_once_are_bounded_but_for_health(monkeypatch):
    monkeypatch.setattr("fassd.serve.app.REQUESTS", 2)
    with listening(load=steady) as url, connections(url, 2, HALF):
        wait_for(lambda: httpx.get(f"{url}/v1/models").status_code == 429)
        assert "Retry-After" in httpx.get(f"{url}/v1/models").headers
        assert httpx.get(f"{url}/healthz").status_code == 200


@pytest.mark.parametrize(
    ("one", "another", "same"),
    [
        ("10.0.0.1", "10.0.0.2", False),
        ("::ffff:10.0.0.1", "10.0.0.1", True),
        ("2001:db8::1", "2001:db8::ffff:1:2:3", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("testclient", "", False),
    ],
)
def test_addresses_of_one_network_count_together(one, another, same):
    assert (network_of(one) == network_of(another)) is same
