/**
 * A live FlowPortrait avatar in a web page: one file, no dependencies, both transports of `flowportrait serve`.
 *
 *     const live = new FlowPortraitLive({ url: "http://127.0.0.1:7880/" });
 *     live.on("state", ({ state }) => console.log(state));
 *     await live.connect();               // after a click, so that the browser allows sound
 *     document.body.append(live.video);
 *     live.speak("Good day.");
 *
 *     speak, push, interrupt, … ─► data channel or WebSocket ─► server
 *     live.video ◄─ WebRTC, or a WebSocket with pictures and PCM (canvas, WebAudio) or mp4 (Media Source)
 *
 * The page must show `live.notice` ("This face is generated.") near the picture. The messages are described in
 * docs/reference/live-protocol.md. This file is also the AudioWorklet module that reads the microphone.
 */

const VERSION = 1;
const CHANNEL = "flowportrait";
const SPEECH = 1, VOICE = 2, PICTURE = 3; // first byte of what is sent
const FRAME = 1, INITIAL_SEGMENT = 2; // first byte of what arrives; 3 is a further segment
const SPEECH_RATE = 24_000, LISTEN_RATE = 16_000;
const PIECE = 8_000; // samples of one binary message: fits a data channel of every browser
const DELAY = 0.12; // seconds that pictures and sound wait to absorb an uneven network
const JITTER_MS = 40; // the least of WebRTC: one frame; a browser takes more where the network is uneven
const CAMERA_WIDTH = 320, CAMERA_FPS = 12; // pictures of the webcam over a WebSocket
const ANSWER_TIMEOUT = 60_000; // ms in which the server must open a session

/** A refusal or a lost connection; `message` is one sentence, `status` the HTTP status or 0. */
export class LiveError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.name = "LiveError";
    this.status = status;
  }
}

/**
 * @typedef {object} LiveOptions
 * @property {string} [url] address of the server; this page's folder by default
 * @property {string} [token] the server's token, where it asks for one
 * @property {string} [image] id of an uploaded photo; the server's photo by default
 * @property {number} [size] side of the picture in pixels
 * @property {"auto"|"webrtc"|"websocket"} [transport] "auto" takes a WebSocket if WebRTC does not connect
 * @property {"jpeg"|"mp4"} [video] what a WebSocket carries: pictures and PCM (lower delay), or mp4 (fewer bytes)
 * @property {RTCIceServer[]} [iceServers] STUN and TURN servers; the server's setting by default
 * @property {number} [timeout] milliseconds after which "auto" gives WebRTC up
 *
 * Events: "connecting" {transport}, "ready" {session, size, fps, rate, notice, transport}, "state" {state, frame},
 * "stats" {frame, late_frames, queued_seconds}, "pong" {id}, "error" {message}, "unstable" {lost: boolean},
 * "closed" {reason}.
 */
export class FlowPortraitLive {
  /** @type {HTMLVideoElement | HTMLCanvasElement | null} the picture, once `connect` has returned */
  video = null;
  /** @type {"closed"|"connecting"|"idle"|"listening"|"speaking"|"interrupted"} */
  state = "closed";
  /** @type {"webrtc"|"websocket"|null} */
  transport = null;
  notice = "This face is generated.";
  /** @type {MediaStream | null} the webcam while it is used */
  camera = null;
  #options;
  #listeners = new Map();
  #link = null;
  #microphone = null; // {stream, capture}
  #cameraTimer = 0;
  #volume = 1;
  #muted = false;
  #rates = new Map(); // kind -> resampler of push and hear

  /** @param {LiveOptions} [options] */
  constructor(options = {}) {
    this.#options = { transport: "auto", video: "jpeg", timeout: 5000, ...options };
    this.url = new URL(options.url ?? ".", document.baseURI);
    if (!this.url.pathname.endsWith("/")) this.url.pathname += "/";
  }

  /** Side of the picture in pixels, for the next session; undefined for the server's. */
  get size() { return this.#options.size; }
  set size(value) { this.#options.size = value; }

  /** Call `callback` at every event of this name; returns a function that ends it. */
  on(event, callback) {
    if (!this.#listeners.has(event)) this.#listeners.set(event, new Set());
    this.#listeners.get(event).add(callback);
    return () => this.#listeners.get(event).delete(callback);
  }

  /** @returns {Promise<object>} what the page needs: sizes, voices, ice_servers, notice */
  config() {
    return this.#request("GET", "live/config").then((answer) => answer.json());
  }

  /** @returns {Promise<Blob>} the face at rest, to be shown before a session */
  poster() {
    return this.#request("GET", "live/poster").then((answer) => answer.blob());
  }

  /**
   * Upload a photo and use it for the next session.
   * @param {Blob} photo
   * @returns {Promise<string>} its id
   */
  async upload(photo) {
    const answer = await this.#request("PUT", "live/image", photo, "application/octet-stream");
    this.#options.image = (await answer.json()).image;
    return this.#options.image;
  }

  /**
   * Open a session. Call it after a click, or the browser may refuse sound.
   * @returns {Promise<object>} the "ready" message
   * @throws {LiveError} with the server's sentence
   */
  async connect() {
    if (this.#link) this.close();
    this.state = "connecting";
    const { transport } = this.#options;
    const attempt = {};
    this.#link = attempt; // close() during the attempt is noticed by it
    try {
      if (transport !== "websocket") {
        try {
          return await this.#open("webrtc", WebRTCLink, attempt);
        } catch (error) {
          // 404 and 501: a server without WebRTC. Any other refusal would be the same over a WebSocket.
          const refused = error.status && ![404, 501].includes(error.status);
          if (transport === "webrtc" || refused || error.name === "AbortError") throw error;
        }
      }
      return await this.#open("websocket", WebSocketLink, attempt);
    } catch (error) {
      if (this.#link === attempt) {
        this.#link = null;
        this.state = "closed";
      }
      throw error;
    }
  }

  async #open(transport, Link, attempt) {
    this.#emit("connecting", { transport });
    const options = this.#options;
    const start = {
      type: "start", version: VERSION, token: options.token ?? null, image: options.image ?? null,
      size: options.size ?? null, video: options.video, speech_rate: SPEECH_RATE, listen_rate: LISTEN_RATE,
    };
    let ready = null;
    const early = []; // messages that arrive before this function has returned to its caller
    const link = new Link({
      start, url: this.url, timeout: options.timeout,
      request: (...sent) => this.#request(...sent),
      iceServers: async () => options.iceServers ?? (await this.config()).ice_servers ?? [],
      message: (message) => (ready ? this.#receive(message) : early.push(message)),
      unstable: (lost) => this.#emit("unstable", { lost }),
      closed: (reason) => { if (this.#link === link) this.#end(reason); },
    });
    try {
      ready = await link.open();
      if (this.#link !== attempt) throw new DOMException("The session was closed.", "AbortError");
    } catch (error) {
      await link.close(); // its place is free before the next transport asks for one
      throw error;
    }
    this.#link = link;
    this.video = link.video;
    this.transport = transport;
    this.notice = ready.notice ?? this.notice;
    this.state = "idle";
    link.setVolume(this.#muted ? 0 : this.#volume);
    this.#emit("ready", { ...ready, transport });
    for (const message of early) this.#receive(message);
    return ready;
  }

  #receive(message) {
    if (message.type === "state") this.state = message.state;
    if (message.type === "closed") this.#end(message.reason);
    else this.#emit(message.type, message);
  }

  #end(reason) {
    const link = this.#link;
    this.#link = null;
    this.state = "closed";
    this.#stopMicrophone();
    this.#stopCamera();
    link?.close?.(true);
    this.#emit("closed", { reason });
  }

  /** Speak a text; `voice` is a name from `config().voices`. */
  speak(text, voice = null) {
    this.#send({ type: "speak", text, voice });
  }

  /**
   * Speak samples.
   * @param {Int16Array} samples mono
   * @param {number} rate in Hz
   */
  push(samples, rate = SPEECH_RATE) {
    this.#sendSound(SPEECH, samples, rate, SPEECH_RATE);
  }

  /** Give the face the other side's voice to listen to; parameters as for `push`. */
  hear(samples, rate = LISTEN_RATE) {
    this.#sendSound(VOICE, samples, rate, LISTEN_RATE);
  }

  /** End the utterance: what was pushed is spoken to its end. */
  finish() {
    this.#rates.delete(SPEECH);
    this.#send({ type: "finish" });
  }

  /** Stop speaking. */
  interrupt() {
    this.#rates.delete(SPEECH);
    this.#send({ type: "interrupt" });
  }

  /**
   * Show an emotion from now on; `{}` ends it.
   * @param {Object<string, number>} weights - from 0 to 1, and 1 in all: happy, sad, angry, surprised, afraid
   */
  showEmotion(weights) {
    this.#send({ type: "emotion", weights });
  }

  /** Ask for a "pong" event with this id. */
  ping(id = 0) {
    this.#send({ type: "ping", id });
  }

  /** Send an event of OpenAI's Realtime interface, or any control message, as it is. */
  send(message) {
    this.#send(message);
  }

  /**
   * Use the microphone: the face says what is said ("speech"), listens to it ("listen"), or neither ("off").
   * @param {"speech"|"listen"|"off"} use
   */
  async useMicrophone(use) {
    const link = this.#opened();
    const had = this.#microphone;
    if (had && had.use === "speech") this.finish();
    if (use === "off") return this.#stopMicrophone();
    const stream = had?.stream ?? (await getMedia({ audio: { echoCancellation: true, noiseSuppression: true } }));
    if (this.#link !== link) return stopTracks(stream);
    this.#microphone = { ...had, stream, use };
    if (link.sendsTracks) {
      await link.replaceTrack("audio", stream.getAudioTracks()[0]);
      this.#send({ type: "microphone", use });
    } else if (!had) {
      this.#microphone.stop = await readMicrophone(stream, (samples, rate) => {
        if (this.#microphone?.use === "speech") this.push(samples, rate);
        else if (this.#microphone) this.hear(samples, rate);
      });
    }
  }

  /**
   * Use the webcam: the face follows it ("drive"), or not ("off").
   * @param {"drive"|"off"} use
   */
  async useCamera(use) {
    const link = this.#opened();
    if (use === "off") return this.#stopCamera();
    if (this.camera) return;
    const camera = await getMedia({ video: { width: { ideal: 640 }, height: { ideal: 480 }, facingMode: "user" } });
    if (this.#link !== link) return stopTracks(camera);
    this.camera = camera;
    this.#send({ type: "camera", use });
    if (link.sendsTracks) await link.replaceTrack("video", camera.getVideoTracks()[0]);
    else this.#cameraTimer = sendPictures(camera, (bytes) => this.#link?.sendBinary(bytes));
  }

  #stopMicrophone() {
    if (!this.#microphone) return;
    this.#microphone.stop?.();
    stopTracks(this.#microphone.stream);
    this.#microphone = null;
    if (this.#link?.sendsTracks) {
      this.#link.replaceTrack("audio", null);
      this.#send({ type: "microphone", use: "off" });
    }
  }

  #stopCamera() {
    if (!this.camera) return;
    clearInterval(this.#cameraTimer);
    stopTracks(this.camera);
    this.camera = null;
    if (this.#link?.sendsTracks) this.#link.replaceTrack("video", null);
    if (this.#link) this.#send({ type: "camera", use: "off" });
  }

  /** Volume of the sound, from 0 to 1. */
  get volume() { return this.#volume; }
  set volume(value) {
    this.#volume = Math.min(Math.max(value, 0), 1);
    this.#link?.setVolume?.(this.#muted ? 0 : this.#volume);
  }

  get muted() { return this.#muted; }
  set muted(value) {
    this.#muted = Boolean(value);
    this.volume = this.#volume;
  }

  /** Root mean square of the sound that plays now, 0 to 1, before the volume is applied. */
  level() {
    const analyser = this.#link?.analyser;
    if (!analyser) return 0;
    const samples = new Float32Array(analyser.fftSize);
    analyser.getFloatTimeDomainData(samples);
    return Math.sqrt(samples.reduce((sum, value) => sum + value * value, 0) / samples.length);
  }

  /** End the session; no "closed" event follows. */
  close() {
    const link = this.#link;
    if (!link) return;
    this.#stopMicrophone();
    this.#stopCamera();
    this.#link = null;
    this.state = "closed";
    link.close?.();
  }

  #emit(event, detail) {
    for (const callback of this.#listeners.get(event) ?? []) callback(detail);
  }

  #opened() {
    if (!this.#link?.open) throw new LiveError("There is no session: call connect() first.");
    return this.#link;
  }

  #send(message) {
    this.#opened().sendText(JSON.stringify(message));
  }

  #sendSound(kind, samples, rate, wanted) {
    const link = this.#opened();
    if (rate !== wanted) {
      if (this.#rates.get(kind)?.rate !== rate) this.#rates.set(kind, new Resampler(rate, wanted));
      samples = this.#rates.get(kind).push(samples);
    }
    for (let begin = 0; begin < samples.length; begin += PIECE) {
      const piece = samples.subarray(begin, begin + PIECE);
      const bytes = new Uint8Array(1 + 2 * piece.length);
      bytes[0] = kind;
      const view = new DataView(bytes.buffer, 1);
      piece.forEach((value, index) => view.setInt16(2 * index, value, true));
      link.sendBinary(bytes);
    }
  }

  async #request(method, path, body, type) {
    const headers = {};
    if (type) headers["Content-Type"] = type;
    if (this.#options.token) headers.Authorization = `Bearer ${this.#options.token}`;
    let answer;
    try {
      answer = await fetch(new URL(path, this.url), { method, headers, body, keepalive: method === "DELETE" });
    } catch {
      throw new LiveError("The server does not answer: is it still running?", -1);
    }
    if (answer.ok) return answer;
    const fallback = `The server answered with an error (${answer.status}).`;
    const detail = (await answer.json().catch(() => ({}))).detail;
    throw new LiveError(typeof detail === "string" ? detail : fallback, answer.status);
  }
}

// --- Transports: open() -> "ready", sendText, sendBinary, setVolume, close; video and analyser ---------------------

class WebRTCLink {
  sendsTracks = true;
  analyser = null;
  #host; #peer = null; #channel = null; #context = null; #session = null; #closed = false;

  constructor(host) {
    this.#host = host;
    this.video = document.createElement("video");
    Object.assign(this.video, { autoplay: true, playsInline: true });
  }

  async open() {
    if (typeof RTCPeerConnection === "undefined") throw new LiveError("This browser has no WebRTC.");
    const host = this.#host;
    const peer = this.#peer = new RTCPeerConnection({ iceServers: await host.iceServers() });
    const stream = new MediaStream();
    this.video.srcObject = stream;
    peer.ontrack = ({ track }) => {
      stream.addTrack(track);
      if (track.kind === "audio") this.#analyse(stream);
    };
    // Both directions from the start: a microphone or a webcam needs no further offer.
    peer.addTransceiver("audio", { direction: "sendrecv" });
    peer.addTransceiver("video", { direction: "sendrecv" });
    const channel = this.#channel = peer.createDataChannel(CHANNEL);
    const ready = new Promise((resolve, reject) => {
      channel.onmessage = ({ data }) => {
        const message = JSON.parse(data);
        if (message.type === "ready") resolve(message);
        else if (message.type === "closed" && !this.#closed) {
          reject(new LiveError(message.reason));
          host.message(message);
        } else host.message(message);
      };
      channel.onclose = () => {
        reject(new LiveError("The connection was closed."));
        if (!this.#closed) host.closed("The connection was closed by the server.");
      };
      peer.onconnectionstatechange = () => {
        if (peer.connectionState === "failed") {
          reject(new LiveError("WebRTC found no way to the server."));
          host.closed("The connection was lost.");
        } else host.unstable(peer.connectionState === "disconnected");
      };
    });
    ready.catch(() => {});
    await peer.setLocalDescription();
    await gathered(peer);
    const { sdp, type } = peer.localDescription;
    const body = JSON.stringify({ sdp, type, start: host.start });
    const answer = await host.request("POST", "live/offer", body, "application/json");
    this.#session = answer.headers.get("Location");
    await peer.setRemoteDescription(await answer.json().then(({ sdp, type }) => ({ sdp, type })));
    // The same delay for both, so that lips and sound fit from the beginning and not after some seconds.
    for (const receiver of peer.getReceivers()) receiver.jitterBufferTarget = JITTER_MS;
    const message = await withTimeout(ready, host.timeout, "WebRTC did not connect in time.");
    this.video.play().catch(() => {}); // refused without a click: the element shows its first picture
    return message;
  }

  #analyse(stream) {
    // The element plays the sound; the context only measures it.
    this.#context = new AudioContext();
    this.analyser = this.#context.createAnalyser();
    this.#context.createMediaStreamSource(stream).connect(this.analyser);
  }

  replaceTrack(kind, track) {
    const transceiver = this.#peer?.getTransceivers().find((one) => one.receiver.track.kind === kind);
    return transceiver?.sender.replaceTrack(track);
  }

  setVolume(volume) {
    Object.assign(this.video, { volume, muted: volume === 0 });
  }

  sendText(text) { this.#post(text); }
  sendBinary(bytes) { this.#post(bytes); }
  #post(data) { if (this.#channel?.readyState === "open") this.#channel.send(data); }

  /** `ended`: the server knows already. */
  async close(ended = false) {
    if (this.#closed) return;
    this.#closed = true;
    this.#peer?.close();
    this.#context?.close();
    if (!this.#session || ended) return;
    const session = new URL(this.#session, this.#host.url);
    await this.#host.request("DELETE", session).catch(() => {}); // it may have ended already
  }
}

class WebSocketLink {
  sendsTracks = false;
  #host; #socket = null; #player = null; #closed = false;

  constructor(host) {
    this.#host = host;
  }

  get video() { return this.#player?.video ?? null; }
  get analyser() { return this.#player?.analyser ?? null; }

  async open() {
    const address = new URL("live/ws", this.#host.url);
    address.protocol = address.protocol.replace("http", "ws");
    const socket = this.#socket = new WebSocket(address);
    socket.binaryType = "arraybuffer";
    const ready = new Promise((resolve, reject) => {
      let reason = null;
      socket.onopen = () => socket.send(JSON.stringify(this.#host.start));
      socket.onmessage = ({ data }) => {
        if (typeof data !== "string") return this.#player?.push(data);
        const message = JSON.parse(data);
        if (message.type === "ready") {
          const Player = message.mime.startsWith("video/mp4") ? Mp4Player : PicturePlayer;
          try {
            this.#player = new Player(message);
          } catch (error) {
            return reject(error);
          }
          resolve(message);
        } else if (message.type === "closed" || (message.type === "error" && !this.#player)) {
          reason = message.reason ?? message.message;
          if (this.#player) this.#host.message(message);
        } else this.#host.message(message);
      };
      socket.onclose = () => {
        // "The server does not answer" is told from a refusal by the sentence that came before.
        reject(new LiveError(reason ?? "The server does not answer, or refuses this page: is it still running?"));
        if (!this.#closed) this.#host.closed(reason ?? "The connection was lost.");
      };
    });
    return withTimeout(ready, ANSWER_TIMEOUT, "The server did not open a session in time.");
  }

  setVolume(volume) { this.#player?.setVolume(volume); }
  sendText(text) { this.#post(text); }
  sendBinary(bytes) { this.#post(bytes); }
  #post(data) { if (this.#socket?.readyState === WebSocket.OPEN) this.#socket.send(data); }

  close() {
    if (this.#closed) return;
    this.sendText(JSON.stringify({ type: "close" }));
    this.#closed = true;
    this.#socket?.close();
    this.#player?.close();
  }
}

// --- Players of what a WebSocket carries ---------------------------------------------------------------------------

/** Plays pictures with PCM: frame n and its sound have the time base + n / fps on the clock of the sound. */
class PicturePlayer {
  #context; #gain; #fps; #base = null; #waiting = []; #drawing; #rate;

  constructor({ size, rate, fps }) {
    this.video = document.createElement("canvas");
    this.video.width = this.video.height = size;
    this.#fps = fps;
    this.#rate = rate;
    this.#context = new AudioContext({ sampleRate: rate, latencyHint: "interactive" });
    this.#context.onstatechange = () => { this.#base = null; };
    this.#gain = this.#context.createGain();
    this.analyser = this.#context.createAnalyser();
    this.analyser.connect(this.#gain).connect(this.#context.destination);
    const draw = () => {
      this.#draw();
      this.#drawing = requestAnimationFrame(draw);
    };
    draw();
  }

  #now() {
    // Without a click the sound stands still; pictures then follow the clock of the page.
    return this.#context.state === "running" ? this.#context.currentTime : performance.now() / 1000;
  }

  push(data) {
    const view = new DataView(data);
    if (view.getUint8(0) !== FRAME) return;
    const index = view.getUint32(1, true), end = 9 + view.getUint32(5, true);
    const sound = new Int16Array(data.slice(end));
    const now = this.#now(), time = index / this.#fps;
    let lead = this.#base === null ? -1 : this.#base + time - now;
    if (lead < 0.005 || lead > 2) {
      this.#base = now + DELAY - time;
      lead = DELAY;
    }
    if (lead > 2 * DELAY && sound.every((value) => Math.abs(value) < 100)) {
      this.#base -= 1 / this.#fps; // after a stall the delay shrinks again, in silence
      return;
    }
    this.#play(sound, this.#base + time);
    if (end > 9) this.#show(new Blob([new Uint8Array(data, 9, end - 9)], { type: "image/jpeg" }), this.#base + time);
  }

  #play(sound, time) {
    if (this.#context.state !== "running" || !sound.length) return;
    const buffer = this.#context.createBuffer(1, sound.length, this.#rate);
    buffer.getChannelData(0).set(Float32Array.from(sound, (value) => value / 32768));
    const source = this.#context.createBufferSource();
    source.buffer = buffer;
    source.connect(this.analyser);
    source.start(Math.round(time * this.#rate) / this.#rate);
  }

  async #show(blob, time) {
    const picture = await createImageBitmap(blob).catch(() => null);
    if (!picture) return;
    this.#waiting.push({ picture, time });
    // A page in the background draws nothing.
    while (this.#waiting.length > 50) this.#waiting.shift().picture.close();
  }

  #draw() {
    const due = this.#now() - (this.#context.state === "running" ? this.#context.outputLatency || 0 : 0);
    let newest = null;
    while (this.#waiting.length && this.#waiting[0].time <= due) {
      newest?.close();
      newest = this.#waiting.shift().picture;
    }
    if (!newest) return;
    this.video.getContext("2d").drawImage(newest, 0, 0, this.video.width, this.video.height);
    newest.close();
  }

  setVolume(volume) {
    this.#gain.gain.value = volume;
  }

  close() {
    cancelAnimationFrame(this.#drawing);
    this.#context.close();
  }
}

/** Plays a fragmented mp4 near its newest end. */
class Mp4Player {
  #source; #buffer = null; #queue = []; #context;

  constructor({ mime }) {
    const Source = globalThis.MediaSource ?? globalThis.ManagedMediaSource;
    if (!Source?.isTypeSupported(mime)) throw new LiveError(`This browser does not play ${mime}: use video "jpeg".`);
    this.video = document.createElement("video");
    Object.assign(this.video, { autoplay: true, playsInline: true, disableRemotePlayback: true });
    this.#source = new Source();
    this.#source.onsourceopen = () => {
      this.#buffer = this.#source.addSourceBuffer(mime);
      this.#buffer.onupdateend = () => this.#next();
      this.#next();
    };
    this.video.src = URL.createObjectURL(this.#source);
    this.#context = new AudioContext();
    this.analyser = this.#context.createAnalyser();
    this.#context.createMediaElementSource(this.video).connect(this.analyser).connect(this.#context.destination);
  }

  push(data) {
    if (new Uint8Array(data)[0] >= INITIAL_SEGMENT) this.#queue.push(new Uint8Array(data, 1));
    this.#next();
  }

  #next() {
    const buffer = this.#buffer, video = this.video;
    if (!buffer || buffer.updating || this.#source.readyState !== "open") return;
    const ranges = buffer.buffered;
    if (ranges.length) {
      const end = ranges.end(ranges.length - 1), begin = ranges.start(ranges.length - 1);
      // The last fragment is played from near its end, and after a stall what was missed is skipped.
      const stale = video.currentTime < begin || end - video.currentTime > 1;
      if (stale) video.currentTime = Math.max(begin, end - 2 * DELAY);
      if (video.paused) video.play().catch(() => {});
      if (video.currentTime - ranges.start(0) > 20) return buffer.remove(0, video.currentTime - 5);
    }
    if (this.#queue.length) buffer.appendBuffer(this.#queue.shift());
  }

  setVolume(volume) {
    Object.assign(this.video, { volume, muted: volume === 0 });
  }

  close() {
    this.video.pause();
    URL.revokeObjectURL(this.video.src);
    this.#context.close();
  }
}

// --- Microphone and webcam -----------------------------------------------------------------------------------------

async function getMedia(wanted) {
  const name = wanted.audio ? "microphone" : "camera";
  if (!navigator.mediaDevices) throw new LiveError(`A browser gives its ${name} only to pages under https.`);
  try {
    return await navigator.mediaDevices.getUserMedia(wanted);
  } catch (error) {
    if (error.name !== "NotAllowedError") throw new LiveError(`No ${name} was found.`);
    throw new LiveError(`The browser may not use the ${name}: allow it for this page.`);
  }
}

function stopTracks(stream) {
  for (const track of stream.getTracks()) track.stop();
}

async function readMicrophone(stream, callback) {
  const context = new AudioContext();
  await context.audioWorklet.addModule(import.meta.url);
  const mono = { numberOfOutputs: 0, channelCount: 1, channelCountMode: "explicit" };
  const node = new AudioWorkletNode(context, "flowportrait-microphone", mono);
  node.port.onmessage = ({ data }) => callback(data, context.sampleRate);
  context.createMediaStreamSource(stream).connect(node);
  return () => {
    node.port.onmessage = null;
    context.close();
  };
}

function sendPictures(stream, send) {
  const camera = document.createElement("video"), canvas = document.createElement("canvas");
  Object.assign(camera, { srcObject: stream, muted: true, playsInline: true });
  camera.play();
  let busy = false;
  return setInterval(() => {
    if (busy || !camera.videoWidth) return;
    canvas.width = CAMERA_WIDTH;
    canvas.height = Math.round((CAMERA_WIDTH * camera.videoHeight) / camera.videoWidth);
    canvas.getContext("2d").drawImage(camera, 0, 0, canvas.width, canvas.height);
    busy = true;
    canvas.toBlob(async (blob) => {
      busy = false;
      if (blob) send(new Uint8Array([PICTURE, ...new Uint8Array(await blob.arrayBuffer())]));
    }, "image/jpeg", 0.8);
  }, 1000 / CAMERA_FPS);
}

/** Changes the rate of 16-bit samples piece by piece: means when there become fewer, else straight lines. */
class Resampler {
  #step; #position = 0; #rest = new Int16Array(0);

  constructor(rate, wanted) {
    this.rate = rate;
    this.#step = rate / wanted;
  }

  push(samples) {
    const all = new Int16Array(this.#rest.length + samples.length);
    all.set(this.#rest);
    all.set(samples, this.#rest.length);
    const width = Math.max(1, Math.round(this.#step));
    const changed = [];
    while (this.#position + width < all.length) {
      const first = Math.floor(this.#position), part = this.#position - first;
      let sum = 0;
      for (let i = first; i < first + width; i++) sum += all[i] * (1 - part) + all[i + 1] * part;
      changed.push(Math.round(sum / width));
      this.#position += this.#step;
    }
    const used = Math.min(Math.floor(this.#position), all.length);
    this.#rest = all.slice(used);
    this.#position -= used;
    return Int16Array.from(changed);
  }
}

function gathered(peer) {
  // Without trickling the offer waits for its candidates; two seconds suffice where a STUN server answers at all.
  return new Promise((resolve) => {
    const check = () => peer.iceGatheringState === "complete" && resolve();
    peer.onicegatheringstatechange = check;
    setTimeout(resolve, 2000);
    check();
  });
}

function withTimeout(promise, milliseconds, sentence) {
  let timer;
  const timeout = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new LiveError(sentence)), milliseconds);
  });
  return Promise.race([promise, timeout]).finally(() => clearTimeout(timer));
}

if (typeof registerProcessor === "function") {
  // Here the file runs as an AudioWorklet module: 16-bit pieces of about 20 ms go to readMicrophone.
  registerProcessor("flowportrait-microphone", class extends AudioWorkletProcessor {
    #samples = new Int16Array(1024);
    #count = 0;

    process([[channel]]) {
      for (const value of channel ?? []) {
        this.#samples[this.#count++] = Math.max(-1, Math.min(1, value)) * 32767;
        if (this.#count === this.#samples.length) {
          this.port.postMessage(this.#samples.slice());
          this.#count = 0;
        }
      }
      return true;
    }
  });
}
