// What the browser measures: one client of the live server, by WebRTC or by WebSocket, that writes down when every frame
// was received and shown. `live_browser.py` puts it into an empty page of the server's own address.
//
//     const client = await bench.connect({transport: "webrtc", start: {...}});
//     client.frames      [due ms, received ms, shown ms, number or -1] of every frame, on the clock of performance.now()
//     client.messages    [ms, text] of every control message
//     await client.watch(action, before, after)    pictures of the frames around an action, as JPEG

"use strict";

const SPEECH = 1;                      // kind of a binary message: speech of 16 bits
const RTP_CLOCK = 90;                  // ticks of the video's RTP clock in a millisecond
const FRAME_MS = 40;
const RING = 40;                       // pictures that are kept before an action

const wait = ms => new Promise(done => setTimeout(done, ms));
const decodeBase64 = text => Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
const base64 = async blob => {
  const reader = new FileReader();
  await new Promise(done => { reader.onload = done; reader.readAsDataURL(blob); });
  return reader.result.split(",")[1];
};

class Client {
  constructor() {
    this.frames = []; this.messages = []; this.pictures = []; this.voices = []; this.watching = false;
    this.events = {};                  // what happened when: offered, answered, connected, first frame, ended
  }

  mark(name) { if (!(name in this.events)) this.events[name] = performance.now(); }

  message(text) {
    this.messages.push([performance.now(), text]);
    try { if (JSON.parse(text).type === "closed") this.mark("told"); } catch (error) { /* counted by the reader */ }
  }

  // Keeps a picture of a frame; it is encoded only after the action, so that measuring takes no time from it.
  keep(number, shown, picture) {
    this.pictures.push([number, shown, picture]);
    while (!this.recording && this.pictures.length > RING) this.drop(this.pictures.shift()[2]);
  }
  drop(picture) { if (picture instanceof ImageBitmap) picture.close(); }

  async encode(picture) {
    if (picture instanceof Blob) return base64(picture);
    const canvas = new OffscreenCanvas(picture.width, picture.height);
    canvas.getContext("2d").drawImage(picture, 0, 0);
    picture.close();
    return base64(await canvas.convertToBlob({type: "image/jpeg", quality: 0.93}));
  }

  // Runs an action while pictures are kept; returns its time and the pictures from `before` ms before to `after` ms after.
  async watch(action, before, after) {
    this.watching = true;
    await wait(before + 2 * FRAME_MS);
    this.recording = true;
    const time = performance.now(), firstMessage = this.messages.length, firstVoice = this.voices.length;
    const running = action();
    await wait(after);
    this.watching = this.recording = false;
    await running;
    const pictures = this.pictures;
    this.pictures = [];
    const kept = [];
    for (const [number, shown, picture] of pictures) {
      if (shown >= time - before && shown <= time + after) kept.push([number, shown, await this.encode(picture)]);
      else this.drop(picture);
    }
    return {time, pictures: kept, messages: this.messages.slice(firstMessage),
            voices: this.voices.slice(firstVoice)};
  }

  // Writes down from now on when a voice begins to be played after silence.
  async listen() {
    const [audio, node] = await watchOnsets(this.stream, 0.02, time => this.voices.push(time));
    node.connect(audio.destination);
  }

  // Sends speech in pieces; `pace` is the milliseconds between two pieces, 0 for all at once.
  async push(pcm, rate, pieceMs, pace, finish = true) {
    const data = typeof pcm === "string" ? decodeBase64(pcm) : pcm, size = 2 * Math.round(rate * pieceMs / 1000);
    const began = performance.now();
    for (let at = 0, piece = 0; at < data.length; at += size, piece++) {
      const late = began + piece * pace - performance.now();
      if (pace && late > 0) await wait(late);
      const message = new Uint8Array(1 + Math.min(size, data.length - at));
      message[0] = SPEECH;
      message.set(data.subarray(at, at + size), 1);
      this.send(message);
    }
    if (finish) this.send(JSON.stringify({type: "finish"}));
    return began;
  }

  // Returns the first text message that fits from now on, or null after a time.
  async until(test, timeout) {
    const end = performance.now() + timeout;
    for (let next = this.messages.length; performance.now() < end; await wait(5)) {
      for (; next < this.messages.length; next++) if (test(this.messages[next][1])) return this.messages[next];
    }
    return null;
  }

  // Records the stream as the browser plays it; returns a WebM file.
  async record(ms, action) {
    const recorder = new MediaRecorder(this.stream, {
      mimeType: "video/webm;codecs=vp8,opus", videoBitsPerSecond: 6e6, audioBitsPerSecond: 192e3});
    const parts = [], ended = new Promise(done => { recorder.onstop = done; });
    recorder.ondataavailable = event => parts.push(event.data);
    recorder.start();
    if (action) await action();
    await wait(ms);
    recorder.stop();
    await ended;
    return base64(new Blob(parts));
  }

  show() {
    this.stream = new MediaStream();
    this.video = document.createElement("video");
    Object.assign(this.video, {autoplay: true, playsInline: true});
    document.body.append(this.video);
    this.video.requestVideoFrameCallback((now, frame) => this.shown(now, frame));
  }

  shown(now, frame) {
    const shown = frame.presentationTime;
    if (!this.frames.length) this.mark("first frame");
    const rtp = frame.rtpTimestamp ?? 0;
    this.rtp = (this.rtp ?? 0) + ((rtp - (this.lastRtp ?? rtp)) | 0);      // unwrapped at 32 bits
    this.lastRtp = rtp;
    this.frames.push([this.rtp / RTP_CLOCK, frame.receiveTime ?? now, shown, frame.presentedFrames]);
    if (this.onFrame) this.onFrame(this.video, shown);
    if (this.watching) {
      const number = frame.presentedFrames;
      createImageBitmap(this.video).then(picture => this.keep(number, shown, picture));
    }
    this.video.requestVideoFrameCallback((later, next) => this.shown(later, next));
  }

  report() { return {frames: this.frames, messages: this.messages, events: this.events}; }
}

class WebRtcClient extends Client {
  async open(start, timeout, jitter) {
    this.peer = new RTCPeerConnection();
    this.channel = this.peer.createDataChannel("flowportrait");
    this.channel.binaryType = "arraybuffer";
    this.channel.onmessage = event => { if (typeof event.data === "string") this.message(event.data); };
    this.channel.onclose = () => this.mark("channel closed");
    this.peer.onconnectionstatechange = () => {
      this.mark(this.peer.connectionState);
      if (["disconnected", "failed", "closed"].includes(this.peer.connectionState)) this.mark("peer gone");
    };
    this.show();
    this.peer.ontrack = event => { this.stream.addTrack(event.track); this.video.srcObject = this.stream; };
    this.peer.addTransceiver("video", {direction: "recvonly"});
    this.peer.addTransceiver("audio", {direction: "recvonly"});
    this.mark("began");
    await this.peer.setLocalDescription(await this.peer.createOffer());
    while (this.peer.iceGatheringState !== "complete") await wait(2);
    this.mark("offered");
    const headers = {"Content-Type": "application/json"};
    if (start.token) headers.Authorization = `Bearer ${start.token}`;
    const body = JSON.stringify({sdp: this.peer.localDescription.sdp, type: "offer", start});
    const answer = await fetch("/live/offer", {method: "POST", headers, body});
    if (answer.status !== 201) throw new Error(`offer: ${answer.status} ${await answer.text()}`);
    const {sdp, session} = await answer.json();
    this.session = session;
    this.location = answer.headers.get("Location");
    await this.peer.setRemoteDescription({type: "answer", sdp});
    if (jitter !== null) for (const receiver of this.peer.getReceivers()) receiver.jitterBufferTarget = jitter;
    this.mark("answered");
    const end = performance.now() + timeout;
    while (!this.frames.length || this.channel.readyState !== "open") {
      if (performance.now() > end) throw new Error(`no frame within ${timeout} ms: ${this.peer.connectionState}`);
      await wait(2);
    }
    return this;
  }

  send(message) { this.channel.send(message); }

  async stats() {
    const found = {};
    for (const entry of (await this.peer.getStats()).values()) {
      if (entry.type === "inbound-rtp") found[entry.kind] = {...entry};
      if (entry.type === "candidate-pair" && entry.nominated) found.pair = {...entry};
      if (entry.type === "codec") (found.codecs ??= []).push(entry.mimeType);
    }
    return found;
  }

  close() { this.peer.close(); this.video.remove(); }
}

class WebSocketClient extends Client {
  async open(start, timeout) {
    this.mark("began");
    this.socket = new WebSocket(`${location.origin.replace(/^http/, "ws")}/live/ws`);
    this.socket.binaryType = "arraybuffer";
    this.socket.onclose = () => { this.mark("channel closed"); this.mark("peer gone"); };
    this.socket.onmessage = event => typeof event.data === "string" ? this.message(event.data) : this.frame(event.data);
    await new Promise((done, fail) => {
      this.socket.onopen = done;
      this.socket.onerror = () => fail(new Error("the socket was refused"));
    });
    this.send(JSON.stringify({type: "start", version: 1, video: "jpeg", ...start}));
    this.mark("offered");
    const end = performance.now() + timeout;
    while (!this.frames.length) {
      if (performance.now() > end || this.events["channel closed"]) {
        throw new Error(`no frame within ${timeout} ms: ${this.messages.map(([, text]) => text).join(" ")}`);
      }
      await wait(2);
    }
    for (const [, text] of this.messages) {
      const message = JSON.parse(text);
      if (message.type === "ready") this.session = message.session;
    }
    return this;
  }

  frame(data) {
    const received = performance.now(), view = new DataView(data);
    if (view.getUint8(0) !== 1) return;
    const number = view.getUint32(1, true), length = view.getUint32(5, true);
    if (this.listening) this.hear(number, received, new Int16Array(data.slice(9 + length)));
    if (!length) return;               // the sound of a frame whose picture was dropped
    const jpeg = new Blob([new Uint8Array(data, 9, length)], {type: "image/jpeg"});
    createImageBitmap(jpeg).then(picture => {
      picture.close();
      const shown = performance.now();
      if (!this.frames.length) this.mark("first frame");
      this.frames.push([number * FRAME_MS, received, shown, number]);
      if (this.watching) this.keep(number, shown, jpeg);
    });
  }

  // The sound comes in the message of its frame and is not played here: a voice is heard when it has been received.
  async listen() { this.listening = true; }
  hear(number, received, samples) {
    const first = samples.findIndex(sample => Math.abs(sample) > 0.02 * 32768);
    if (first < 0) return;
    if (!(number - this.lastLoud < 7)) this.voices.push(received + FRAME_MS * first / samples.length);
    this.lastLoud = number;
  }

  send(message) { this.socket.send(message); }
  async stats() { return {}; }
  close() { this.socket.close(); }
}

// A click and a flash that the page itself makes, in the same moment: what the measurement adds of its own.
class LocalClient extends Client {
  async open() {
    this.mark("began");
    this.show();
    this.audio = new AudioContext({latencyHint: "interactive"});
    await this.audio.resume();
    const canvas = Object.assign(document.createElement("canvas"), {width: 256, height: 256});
    const context = canvas.getContext("2d"), tone = this.audio.createOscillator(), gain = this.audio.createGain();
    const target = this.audio.createMediaStreamDestination();
    tone.frequency.value = 1000;
    gain.gain.value = 0;
    tone.connect(gain).connect(target);
    tone.start();
    let frame = 0;
    this.timer = setInterval(() => {
      const phase = frame++ % 25;
      context.fillStyle = phase < 2 ? "white" : "rgb(16,16,16)";
      context.fillRect(0, 0, 256, 256);
      if (phase === 0) { gain.gain.value = 0.5; }
      if (phase === 1) { gain.gain.value = 0; }
    }, FRAME_MS);
    for (const track of [...canvas.captureStream(25).getTracks(), ...target.stream.getTracks()]) this.stream.addTrack(track);
    this.video.srcObject = this.stream;
    while (!this.frames.length) await wait(5);
    return this;
  }
  send() {}
  async stats() { return {}; }
  close() { clearInterval(this.timer); this.audio.close(); this.video.remove(); }
}

// --- Click and flash ---

// Runs in the audio thread: times at which a sound that begins after silence is handed to the output.
const ONSETS = `registerProcessor("onsets", class extends AudioWorkletProcessor {
  constructor({processorOptions}) { super(); this.level = processorOptions.level; }
  process(inputs) {
    const samples = inputs[0][0];
    if (samples) for (let n = 0; n < samples.length; n++) {
      const now = currentTime + n / sampleRate;
      if (Math.abs(samples[n]) > this.level) {
        // The wall clock is the only one that this thread shares with the page.
        if (!(now - this.last < 0.25)) this.port.postMessage(Date.now() + 1000 * n / sampleRate);
        this.last = now;
      }
    }
    return true;
  }
});`;

// Calls back with the time of every onset of sound in a stream.
async function watchOnsets(stream, level, found) {
  const audio = new AudioContext({latencyHint: "interactive"});
  await audio.resume();
  await audio.audioWorklet.addModule(URL.createObjectURL(new Blob([ONSETS], {type: "text/javascript"})));
  const node = new AudioWorkletNode(audio, "onsets", {processorOptions: {level}});
  node.port.onmessage = event => found(event.data - performance.timeOrigin);
  audio.createMediaStreamSource(stream).connect(node);
  return [audio, node];
}

// Writes down when flashes are shown and when clicks are played.
async function watchClicksAndFlashes(client, ms) {
  const canvas = new OffscreenCanvas(8, 8), context = canvas.getContext("2d", {willReadFrequently: true});
  const flashes = [], clicks = [];
  let bright = true;
  client.onFrame = (video, shown) => {
    context.drawImage(video, 0, 0, 8, 8);
    const level = context.getImageData(4, 4, 1, 1).data[1];
    if (level > 180 && !bright) flashes.push(shown);
    bright = level > 100;
  };
  const [audio, node] = await watchOnsets(client.stream, 0.1, time => clicks.push(time));
  node.connect(audio.destination);
  await wait(ms);
  client.onFrame = null;
  const stats = await client.stats();
  await audio.close();
  return {flashes, clicks, latency: 1000 * (audio.outputLatency || 0), stats};
}

// Asks the test source for a grey picture and measures when it is shown; the time that the transport alone takes.
async function measureAnswer(client) {
  const canvas = new OffscreenCanvas(8, 8), context = canvas.getContext("2d", {willReadFrequently: true});
  let answer;
  client.onFrame = (video, shown) => {
    context.drawImage(video, 0, 0, 8, 8);
    const [red, , blue] = context.getImageData(4, 4, 1, 1).data;
    if (answer === undefined && blue > red + 60) answer = shown;
  };
  const asked = performance.now();
  client.send(new Uint8Array([SPEECH, 0, 0]));
  while (answer === undefined && performance.now() < asked + 3000) await wait(2);
  client.onFrame = null;
  return answer === undefined ? null : answer - asked;
}

window.bench = {
  clients: [], wait, watchClicksAndFlashes, measureAnswer,
  async connect({transport, start, timeout = 15000, jitter = null}) {
    const client = new ({webrtc: WebRtcClient, websocket: WebSocketClient, local: LocalClient})[transport]();
    await client.open(start ?? {}, timeout, jitter);
    this.clients.push(client);
    return this.clients.length - 1;
  },
};
