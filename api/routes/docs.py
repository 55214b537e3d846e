"""The reference in a browser: Swagger UI out of a wheel, so that no other host is asked or runs code here."""

from importlib import resources

from fastapi import APIRouter, Response
from fastapi.openapi.docs import get_swagger_ui_html

from relay.errors import NotFound

router = APIRouter(include_in_schema=False)

_TYPES = {
    "swagger-ui-bundle.js": "text/javascript; charset=utf-8",
    "swagger-ui.css": "text/css; charset=utf-8",
}
_HEADERS = {
    # The page starts by a script of its own, and its styles are attributes.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
        "connect-src 'self'; img-src 'self' data:; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


@router.head("/docs")
@router.get("/docs")
async def page() -> Response:
    """The page; it asks for /openapi.json."""
    html = get_swagger_ui_html(
        openapi_url="/openapi.json",
        title="relay: reference",
        swagger_js_url="/docs/swagger-ui-bundle.js",
        swagger_css_url="/docs/swagger-ui.css",
        swagger_favicon_url="data:,",
    )
    return Response(html.body, media_type="text/html", headers=_HEADERS)


@router.head("/docs/{name}")
@router.get("/docs/{name}")
async def asset(name: str) -> Response:
    """What it is made of; 2 MB that are read when asked for, which is seldom."""
    if name not in _TYPES:
        raise NotFound(f"no file {name[:64]!r} in the reference")
    data = resources.files("fastapi_swagger.resources").joinpath(name).read_bytes()
    headers = {**_HEADERS, "Content-Type": _TYPES[name], "Cache-Control": "max-age=86400"}
    return Response(data, headers=headers)
