"""What is checked before a WebRTC connection is made: the offer of the client, and the STUN and TURN servers.

offer ─► read_offer ─► SessionDescription, or BadInput
IceServer ─► ice_configuration ─► RTCConfiguration, or BadInput
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aiortc import RTCConfiguration, RTCIceServer
from aiortc.rtcicetransport import parse_stun_turn_uri
from aiortc.sdp import SessionDescription

from flowportrait.errors import BadInput

CODECS = ("H264", "VP8")
"""Codecs of the pictures, the preferred one first."""
MAX_OFFER = 64 * 1024
"""Characters of an offer; browsers send about 6000."""
MAX_CANDIDATES = 40
"""Addresses of a client that are tried."""


@dataclass(frozen=True)
class IceServer:
    """A STUN or TURN server.

    Attributes:
        urls: such as ``stun:stun.example.org:3478`` or ``turn:turn.example.org?transport=tcp``.
        username: for TURN.
        credential: the password, for TURN.
    """

    urls: tuple[str, ...]
    username: str = ""
    credential: str = ""


def ice_configuration(servers: Sequence[IceServer]) -> RTCConfiguration:
    """Return what ``aiortc`` needs to know of the STUN and TURN servers; none are used that are not given.

    Raises:
        BadInput: an address is not one of a STUN or TURN server.
    """
    for url in (url for server in servers for url in server.urls):
        try:
            parse_stun_turn_uri(url)
        except ValueError:
            raise BadInput(
                f"{url!r} is no address of a STUN or TURN server: write it as stun:HOST:PORT or turn:HOST:PORT."
            ) from None
    return RTCConfiguration(
        iceServers=[
            RTCIceServer(urls=list(one.urls), username=one.username or None, credential=one.credential or None)
            for one in servers
        ]
    )


def read_offer(sdp: str) -> SessionDescription:
    """Return a parsed offer that can be answered.

    Raises:
        BadInput: it is too long, is no SDP, or does not ask for one video and one audio stream.
    """
    if len(sdp) > MAX_OFFER:
        raise BadInput(f"The offer has {len(sdp)} characters, and {MAX_OFFER} are possible: send fewer candidates.")
    try:
        offer = SessionDescription.parse(sdp)
    except Exception as error:  # the parser raises whatever the text makes it stumble over
        raise BadInput(f"The offer is no session description ({type(error).__name__}): send SDP of WebRTC.") from None
    if not offer.media:
        raise BadInput("The offer is no session description (no m= line): send SDP of WebRTC.")
    kinds = [media.kind for media in offer.media]
    for kind, words in (("video", "m=video"), ("audio", "m=audio"), ("application", "m=application")):
        if kinds.count(kind) > 1:
            raise BadInput(f"The offer has {kinds.count(kind)} sections {words}: send one, with sendrecv or recvonly.")
    if unknown := sorted(set(kinds) - {"audio", "video", "application"}):
        raise BadInput(f"The offer has a section m={unknown[0][:20]}: send only audio, video and application.")
    for kind in ("video", "audio"):
        section = next((media for media in offer.media if media.kind == kind), None)
        if section is None or section.direction not in (None, "sendrecv", "recvonly"):
            raise BadInput(f"The offer asks for no {kind}: add a transceiver for {kind} with recvonly or sendrecv.")
        names = {codec.name.upper() for codec in section.rtp.codecs}
        wanted = set(CODECS) if kind == "video" else {"OPUS"}
        if not names & wanted:
            raise BadInput(f"The offer knows no {kind} codec that is sent here: offer {' or '.join(sorted(wanted))}.")
    if any(media.dtls is None or not media.dtls.fingerprints for media in offer.media):
        raise BadInput("The offer has a section without a=setup or a=fingerprint: send SDP of WebRTC.")
    count = sum(len(media.ice_candidates) for media in offer.media)
    if count > MAX_CANDIDATES:
        raise BadInput(f"The offer has {count} candidates, and {MAX_CANDIDATES} are possible: send fewer.")
    return offer
