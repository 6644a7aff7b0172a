-- SPDX-License-Identifier: MIT
--
-- Wireshark's dissector of mnp, the Machnet message protocol over UDP, in plain mode (that of the
-- C++ Machnet) and in extended mode.
--
--     tshark -X lua_script:"$(machnet dissector --path)" -r capture.pcapng -Y mnp
--
-- A UDP datagram is taken for mnp by its magic number; a port can be named with "Decode As". The
-- mode is that of the flow, known from its SYN and SYN-ACK: bytes 12 to 45 of a plain DATA packet
-- are what was in the sender's memory. No bit operators: they differ between versions of Lua.

local mnp = Proto("mnp", "Machnet message protocol")

local MAGIC, HEADER, MARKER, VERSION = 0x4e53, 54, 0x4d4e5854, 1
local PLAIN_MSS, PLAIN_WINDOW, NO_ACK, TWO32 = 1418, 64, 0xffffffff, 4294967296
local DATA, SYN, ACK, SYN_ACK, FIN, RST = 0x00, 0x01, 0x02, 0x03, 0x04, 0x80
local KINDS = {
    [DATA] = "DATA", [SYN] = "SYN", [ACK] = "ACK", [SYN_ACK] = "SYN-ACK", [FIN] = "FIN",
    [RST] = "RST",
}
local REASONS = {
    "Closed by the application", "Refused", "Timed out", "Protocol error", "Message too large",
    "Out of resources", "Application gone",
}
local FEATURES = { -- bit, abbreviation, name
    { 0x01, "sack", "SACK" }, { 0x02, "data_ack", "ACK on DATA" },
    { 0x04, "timestamps", "Timestamps" }, { 0x08, "window", "Receive window" },
    { 0x10, "fin", "FIN" }, { 0x20, "reasons", "Reset reasons" },
    { 0x40, "length", "Message length" },
}
local MSG_FLAGS = {
    { 0x01, "first", "First packet of a message" },
    { 0x02, "more", "More packets follow" }, { 0x04, "last", "Last packet of a message" },
    { 0x08, "chain", "Chained (internal to the host)" },
    { 0x80, "notify", "Notify of delivery (internal to the host)" },
}
local PLAIN, EXTENDED = "plain", "extended"

local F = {}
local function add(name, make, ...)
    F[name] = make(...)
end
add("magic", ProtoField.uint16, "mnp.magic", "Magic", base.HEX)
add("net_flags", ProtoField.uint8, "mnp.net_flags", "Packet type", base.HEX, KINDS)
add("msg_flags", ProtoField.uint8, "mnp.msg_flags", "Message flags", base.HEX)
for _, f in ipairs(MSG_FLAGS) do
    add("msg_" .. f[2], ProtoField.bool, "mnp.msg_flags." .. f[2], f[3], 8, nil, f[1])
end
add("seqno", ProtoField.uint32, "mnp.seqno", "Sequence number")
add("ackno", ProtoField.uint32, "mnp.ackno", "Acknowledgement number")
add("sack_bitmap", ProtoField.bytes, "mnp.sack_bitmap", "SACK bitmap")
add("sack_bitmap_count", ProtoField.uint16, "mnp.sack_bitmap_count", "Packets held out of order")
add("timestamp1", ProtoField.uint64, "mnp.timestamp1", "Timestamp (unused)")
add("unwritten", ProtoField.bytes, "mnp.unwritten", "Not written by a plain sender")
add("marker", ProtoField.uint32, "mnp.marker", "Marker of extended mode", base.HEX)
add("version", ProtoField.uint8, "mnp.version", "Version")
add("features", ProtoField.uint16, "mnp.features", "Features", base.HEX)
for _, f in ipairs(FEATURES) do
    add("feature_" .. f[2], ProtoField.bool, "mnp.features." .. f[2], f[3], 16, nil, f[1])
end
add("mss", ProtoField.uint16, "mnp.mss", "Largest payload (bytes)")
add("window", ProtoField.uint16, "mnp.window", "Receive window (packets)")
add("tsval", ProtoField.uint32, "mnp.tsval", "Timestamp value (us)")
add("tsecr", ProtoField.uint32, "mnp.tsecr", "Timestamp echo (us)")
add("message_length", ProtoField.uint32, "mnp.message_length", "Length of the message")
add("reason", ProtoField.uint32, "mnp.reset_reason", "Reason of the reset", base.DEC, REASONS)
add("reserved", ProtoField.bytes, "mnp.reserved", "Reserved")
add("sack_seqno", ProtoField.uint32, "mnp.sack.seqno", "Held")
add("sack_count", ProtoField.uint32, "mnp.sack.count", "Packets held")
add("payload", ProtoField.bytes, "mnp.payload", "Payload")
add("len", ProtoField.uint32, "mnp.len", "Payload length")
add("mode", ProtoField.string, "mnp.mode", "Mode")
add("stream", ProtoField.uint32, "mnp.stream", "Flow index")
add("acks_frame", ProtoField.framenum, "mnp.analysis.acks_frame",
    "Acknowledges the packet in frame", base.NONE, frametype.ACK)
add("ack_rtt", ProtoField.double, "mnp.analysis.ack_rtt", "Time to the acknowledgement (s)")
add("retransmission", ProtoField.framenum, "mnp.analysis.retransmission", "Sent before in frame",
    base.NONE, frametype.RETRANS_PREV)
add("duplicate_ack", ProtoField.uint32, "mnp.analysis.duplicate_ack",
    "Duplicate acknowledgement, number")
add("msg_number", ProtoField.uint32, "mnp.message.number", "Message of this direction, number")
add("msg_bytes", ProtoField.uint32, "mnp.message.bytes", "Message, bytes")
add("msg_packets", ProtoField.uint32, "mnp.message.packets", "Message, packets")
add("msg_frame", ProtoField.framenum, "mnp.message.first_frame", "Message began in frame")
local fields = {}
for _, field in pairs(F) do
    fields[#fields + 1] = field
end
mnp.fields = fields

local G, S = expert.group, expert.severity
local E, experts = {}, {}
for name, e in pairs({
    truncated = { "The header is cut off", G.MALFORMED, S.ERROR },
    not_captured = { "The header was not captured as a whole", G.UNDECODED, S.WARN },
    type = { "Unknown packet type", G.UNDECODED, S.WARN },
    empty = { "DATA without payload", G.PROTOCOL, S.ERROR },
    oversize = { "Payload of more than a plain peer takes (1418 bytes)", G.PROTOCOL, S.WARN },
    trailing = { "Payload behind a packet that carries none", G.PROTOCOL, S.WARN },
    framing = { "Message flags that contradict each other or those before", G.PROTOCOL, S.WARN },
    short_packet = { "A packet of a message is longer or shorter than it may", G.PROTOCOL, S.WARN },
    length = { "The message's length is not what its first packet says", G.PROTOCOL, S.WARN },
    offer = { "Offer of extended mode with impossible values", G.PROTOCOL, S.WARN },
    retransmission = { "Retransmission", G.SEQUENCE, S.NOTE },
    out_of_order = { "Out of order", G.SEQUENCE, S.NOTE },
    lost = { "Packets before this one were not captured or are lost", G.SEQUENCE, S.NOTE },
    duplicate_ack = { "Duplicate acknowledgement", G.SEQUENCE, S.NOTE },
    window_exceeded = { "Beyond the receive window", G.SEQUENCE, S.WARN },
    zero_window = { "Receive window closed", G.SEQUENCE, S.NOTE },
    syn = { "Flow begins", G.SEQUENCE, S.CHAT },
    fin = { "This direction is closed", G.SEQUENCE, S.CHAT },
    reset = { "Reset", G.SEQUENCE, S.WARN },
    message = { "Message complete", G.REASSEMBLE, S.CHAT },
}) do
    E[name] = ProtoExpert.new("mnp.expert." .. name, e[1], e[2], e[3])
    experts[#experts + 1] = E[name]
end
mnp.experts = experts

mnp.prefs.unseen = Pref.enum("Mode without handshake", 1,
    "What a flow is taken for whose handshake was not captured",
    { { 1, "plain", 1 }, { 2, "extended", 2 } }, false)

local function has(value, bit)
    return math.floor(value / bit) % 2 == 1
end

-- How far sequence number a is behind b: negative where it is before.
local function diff(a, b)
    return (a - b + 2147483648) % TWO32 - 2147483648
end

-- State of flows, built when frames are seen first; what a frame is told about, for later passes.
local flows, by_frame, n_flows = {}, {}, 0

function mnp.init()
    flows, by_frame, n_flows = {}, {}, 0
end

local function new_side()
    -- next: the sequence number that completes the order; top: behind the highest one seen;
    -- sent[seqno] = { frame, time }; held[seqno] = { flags, bytes }; message: the one being built.
    return { sent = {}, held = {}, messages = 0, dups = 0 }
end

local function new_flow(syn)
    local flow = { index = n_flows, syn = syn, sides = {}, mode = nil, features = 0 }
    n_flows = n_flows + 1
    return flow
end

local function find_flow(pinfo, kind, seqno)
    local a = tostring(pinfo.src) .. " " .. pinfo.src_port
    local b = tostring(pinfo.dst) .. " " .. pinfo.dst_port
    local key = a < b and (a .. " " .. b) or (b .. " " .. a)
    local flow = flows[key]
    local anew = not flow
    if flow and kind == SYN then
        -- The same ports again. Whoever has sent more than its SYN does not repeat that one.
        local side = flow.sides[a]
        local more = side and side.top and flow.syn and diff(side.top, flow.syn) > 1
        local mine = flow.opener == a
        anew = flow.over or flow.syn == nil or (mine and (flow.syn ~= seqno or more))
            or (not mine and flow.mode ~= nil)
    end
    if anew then
        flow = new_flow(kind == SYN and seqno or nil)
        flow.opener = kind == SYN and a or nil
        flows[key] = flow
    end
    local here = flow.sides[a] or new_side()
    local there = flow.sides[b] or new_side()
    flow.sides[a], flow.sides[b] = here, there
    return flow, here, there
end

-- The offer of a SYN or SYN-ACK, or nil.
local function read_offer(tvb)
    if tvb(12, 4):uint() ~= MARKER then
        return nil
    end
    return {
        version = tvb(16, 1):uint(), features = tvb(18, 2):uint(),
        mss = tvb(20, 2):uint(), window = tvb(22, 2):uint(),
    }
end

local function note_handshake(flow, here, there, kind, offer)
    if kind == SYN then
        flow.offered = offer ~= nil and offer or false
    elseif offer and offer.version >= 1 and flow.offered ~= false then
        flow.mode, flow.features = EXTENDED, offer.features
    else
        flow.mode = PLAIN
    end
    if offer then
        here.mss, here.window = offer.mss, offer.window
    end
end

local function finish_message(here, told)
    local m = here.message
    here.messages = here.messages + 1
    told.message = { number = here.messages, bytes = m.bytes, packets = m.packets, frame = m.frame }
    if m.total and m.total > 0 and m.total ~= m.bytes then
        told.length = true
    end
    here.message = nil
end

-- Packets that have come into order are added to the message that is being built.
local function put_in_order(here, told)
    while here.next and here.held[here.next] do
        local packet = here.held[here.next]
        here.held[here.next] = nil
        here.next = (here.next + 1) % TWO32
        if packet.flags ~= nil then
            local first, more = has(packet.flags, 1), has(packet.flags, 2)
            local last = has(packet.flags, 4)
            if first == (here.message ~= nil) or more == last then
                told.framing = true
            end
            if first or not here.message then
                here.message = { bytes = 0, packets = 0, frame = packet.frame,
                    total = packet.total }
            end
            local m = here.message
            m.size = m.size or packet.size or packet.bytes
            if packet.bytes > m.size or (more and packet.bytes ~= m.size) then
                told.short_packet = true
            end
            m.bytes, m.packets = m.bytes + packet.bytes, m.packets + 1
            if last then
                finish_message(here, told)
            end
        end
    end
end

-- What consumes a sequence number: SYN, SYN-ACK, DATA, FIN.
local function note_sent(flow, here, there, told, p)
    local before = here.sent[p.seqno]
    if p.kind == SYN or p.kind == SYN_ACK then
        if not before then
            here.next, here.top = p.seqno, p.seqno
        end
    elseif not here.next and (p.kind ~= DATA or has(p.msg_flags, 1)) then
        here.next = p.seqno -- the capture began in the middle of the flow
    end
    if before then
        told.retransmission = before.frame
    elseif here.next and diff(p.seqno, here.next) < 0 then
        told.retransmission = 0
    elseif here.top and diff(p.seqno, here.top) < 0 then
        told.out_of_order = true
    elseif here.top and p.seqno ~= here.top then
        told.lost = diff(p.seqno, here.top)
    end
    local limit = there.ackno and (flow.mode == EXTENDED and there.window or PLAIN_WINDOW)
    if limit and p.kind == DATA and diff(p.seqno, there.ackno) >= limit and limit > 0 then
        told.window_exceeded = true
    end
    if told.retransmission then
        if before then
            before.again = true
        end
        return
    end
    here.sent[p.seqno] = { frame = p.frame, time = p.time }
    here.held[p.seqno] = { flags = p.kind == DATA and p.msg_flags or nil, bytes = p.bytes,
        frame = p.frame, total = p.total, size = flow.mode == PLAIN and PLAIN_MSS or nil }
    if not here.top or diff(p.seqno, here.top) >= 0 then
        here.top = (p.seqno + 1) % TWO32
    end
    put_in_order(here, told)
end

-- An acknowledgement by one side of what the other has sent.
local function note_ack(here, there, told, p)
    local old = here.ackno
    if old and p.ackno == old then
        -- Only a bare ACK that says nothing new: not DATA, not a new window.
        if p.kind == ACK and (p.window == nil or p.window == here.window) then
            here.dups = here.dups + 1
            told.duplicate_ack = here.dups
        end
    elseif not old or diff(p.ackno, old) > 0 then
        local last = there.sent[(p.ackno - 1) % TWO32]
        if last then
            told.acks_frame = last.frame
            told.ack_rtt = not last.again and p.time - last.time or nil
        end
        if there.next and diff(p.ackno, there.next) > 0 then
            -- The other has what the capture has not.
            there.next, there.message, there.held[p.ackno - 1] = p.ackno, nil, nil
            put_in_order(there, told)
        end
        here.ackno, here.dups = p.ackno, 0
    end
    if p.window then
        here.window = p.window
    end
end

local function analyse(pinfo, tvb, p)
    local flow, here, there = find_flow(pinfo, p.kind, p.seqno)
    local told = { flow = flow }
    if p.kind == SYN or p.kind == SYN_ACK then
        note_handshake(flow, here, there, p.kind, p.offer)
    end
    told.mode, told.features = flow.mode, flow.features
    -- A refusal comes before there is a mode: it is worded as the SYN offered.
    if p.kind == RST and flow.mode == nil and flow.offered then
        told.mode, told.features = EXTENDED, flow.offered.features
    end
    if told.mode == nil and p.kind ~= SYN then
        told.mode = mnp.prefs.unseen == 2 and EXTENDED or PLAIN
        told.features, told.unseen = 0x7f, true
    end
    local extended = told.mode == EXTENDED
    p.window, p.total = nil, nil
    if extended and p.kind ~= SYN and p.kind ~= SYN_ACK and p.kind ~= RST then
        p.window = has(told.features, 0x08) and tvb(44, 2):uint() or nil
        if p.kind == DATA and has(told.features, 0x40) and has(p.msg_flags, 1) then
            p.total = tvb(12, 4):uint()
        end
    end
    if p.kind == SYN or p.kind == SYN_ACK or p.kind == DATA or (p.kind == FIN and extended) then
        note_sent(flow, here, there, told, p)
    end
    local acks = p.kind == ACK or p.kind == SYN_ACK or (extended and p.kind == FIN)
    acks = acks or (extended and p.kind == DATA and has(told.features, 0x02))
    if acks then
        note_ack(here, there, told, p)
    end
    flow.over = flow.over or p.kind == RST
    told.stream = flow.index
    told.flow = nil
    return told
end

local function add_flags(tree, range, field, flags, prefix, text)
    local names = {}
    for _, f in ipairs(flags) do
        if has(range:uint(), f[1]) then
            names[#names + 1] = f[2]
        end
    end
    local said = #names > 0 and table.concat(names, ", ") or "none"
    local branch = tree:add(field, range):append_text(" (" .. said .. ")")
    for _, f in ipairs(flags) do
        branch:add(F[prefix .. f[2]], range)
    end
    return #names > 0 and table.concat(names, " ") or text, branch
end

local function add_generated(tree, field, ...)
    local item = tree:add(field, ...)
    item:set_generated()
    return item
end

local function add_reserved(tree, tvb, from, to)
    local range = tvb(from, to - from)
    local item = tree:add(F.reserved, range)
    if range:bytes():tohex():find("[^0]") then
        item:append_text(" (not zero: ignored)")
    end
end

local function show_offer(tree, tvb, p)
    tree:add(F.marker, tvb(12, 4)):append_text(" (extended mode)")
    local version = tree:add(F.version, tvb(16, 1))
    add_reserved(tree, tvb, 17, 18)
    add_flags(tree, tvb(18, 2), F.features, FEATURES, "feature_", "")
    local mss = tree:add(F.mss, tvb(20, 2))
    tree:add(F.window, tvb(22, 2))
    add_reserved(tree, tvb, 24, 46)
    local o = p.offer
    if o.version == 0 or o.version > VERSION then
        version:add_proto_expert_info(E.offer, "Version " .. o.version .. ": known is 1")
    end
    if o.mss < 512 or o.mss > 8900 then
        mss:add_proto_expert_info(E.offer, "MSS of " .. o.mss .. " bytes: it is 512 to 8900")
    end
    return " MNXT v" .. o.version .. " mss=" .. o.mss .. " win=" .. o.window
end

local function show_stamps(tree, tvb)
    tree:add(F.tsval, tvb(46, 4))
    tree:add(F.tsecr, tvb(50, 4))
end

-- Bit i, from the least significant of each 64-bit word, is packet ackno + 1 + i.
local function show_sack(tree, tvb, p)
    local branch = tree:add(F.sack_bitmap, tvb(12, 32))
    local ranges, count, from = {}, 0, nil
    for i = 0, 256 do
        local held = false
        if i < 256 then
            local byte = 12 + math.floor(i / 64) * 8 + 7 - math.floor(i % 64 / 8)
            held = has(tvb(byte, 1):uint(), 2 ^ (i % 8))
            if held then
                add_generated(branch, F.sack_seqno, tvb(byte, 1), (p.ackno + 1 + i) % TWO32)
                count = count + 1
            end
        end
        if held and not from then
            from = i
        elseif not held and from then
            local a, b = (p.ackno + 1 + from) % TWO32, (p.ackno + i) % TWO32
            ranges[#ranges + 1] = from == i - 1 and tostring(a) or (a .. "-" .. b)
            from = nil
        end
    end
    add_generated(branch, F.sack_count, tvb(12, 32), count)
    if count == 0 then
        return ""
    end
    branch:append_text(" (" .. table.concat(ranges, ", ") .. ")")
    return " SACK=" .. table.concat(ranges, ",")
end

local function show_plain(tree, tvb, p)
    if p.kind == DATA then
        tree:add(F.unwritten, tvb(12, 34))
        tree:add(F.timestamp1, tvb(46, 8))
        return ""
    end
    tree:add(F.sack_bitmap, tvb(12, 32))
    tree:add(F.sack_bitmap_count, tvb(44, 2))
    tree:add(F.timestamp1, tvb(46, 8))
    local count = tvb(44, 2):uint()
    return count > 0 and (" held=" .. count) or ""
end

local function show_extended(tree, tvb, p, told)
    local text = ""
    if p.kind == RST then
        local code = tvb(12, 4):uint()
        tree:add(F.reason, tvb(12, 4))
        add_reserved(tree, tvb, 16, 46)
        text = " reason=" .. code .. (REASONS[code] and " (" .. REASONS[code] .. ")" or "")
        told.why = REASONS[code] or ("reason " .. code)
    elseif p.kind == DATA then
        tree:add(F.message_length, tvb(12, 4))
        add_reserved(tree, tvb, 16, 44)
    elseif p.kind == ACK or p.kind == FIN then
        text = show_sack(tree, tvb, p)
    end
    if p.kind ~= RST then
        local window = tree:add(F.window, tvb(44, 2))
        text = text .. " win=" .. tvb(44, 2):uint()
        if tvb(44, 2):uint() == 0 and has(told.features, 0x08) then
            window:add_proto_expert_info(E.zero_window)
        end
    end
    show_stamps(tree, tvb)
    return text
end

local function show_analysis(tree, told, p)
    local function note(e, text)
        if text then
            tree:add_proto_expert_info(e, text)
        else
            tree:add_proto_expert_info(e)
        end
    end
    add_generated(tree, F.stream, told.stream)
    add_generated(tree, F.mode, told.mode or (p.offer and "extended, offered" or "plain"))
        :append_text(told.unseen and " (assumed: the handshake was not captured)" or "")
    if told.retransmission then
        if told.retransmission > 0 then
            add_generated(tree, F.retransmission, told.retransmission)
        end
        note(E.retransmission)
    end
    if told.out_of_order then note(E.out_of_order) end
    if told.lost then note(E.lost, "Missing before this one: " .. told.lost .. " packets") end
    if told.window_exceeded then note(E.window_exceeded) end
    if told.acks_frame then add_generated(tree, F.acks_frame, told.acks_frame) end
    if told.ack_rtt then add_generated(tree, F.ack_rtt, told.ack_rtt) end
    if told.duplicate_ack then
        add_generated(tree, F.duplicate_ack, told.duplicate_ack)
        note(E.duplicate_ack, "Duplicate acknowledgement #" .. told.duplicate_ack)
    end
    if told.framing then note(E.framing) end
    if told.short_packet then note(E.short_packet) end
    if told.length then note(E.length) end
    local m = told.message
    if m then
        add_generated(tree, F.msg_number, m.number)
        add_generated(tree, F.msg_bytes, m.bytes)
        add_generated(tree, F.msg_packets, m.packets)
        add_generated(tree, F.msg_frame, m.frame)
        note(E.message, "Message " .. m.number .. ": " .. m.bytes .. " bytes in " .. m.packets ..
            " packets from frame " .. m.frame)
    end
    if p.kind == SYN or p.kind == SYN_ACK then note(E.syn) end
    if p.kind == FIN then note(E.fin) end
    if p.kind == RST then note(E.reset, told.why and "Reset: " .. told.why or "Reset") end
end

local function show_payload(tree, tvb, p, told)
    add_generated(tree, F.len, p.bytes)
    local item = tree
    if tvb:captured_len() > HEADER then
        item = tree:add(F.payload, tvb(HEADER))
    end
    if p.kind ~= DATA then
        if p.bytes > 0 then item:add_proto_expert_info(E.trailing) end
    elseif p.bytes == 0 then
        item:add_proto_expert_info(E.empty)
    elseif p.bytes > PLAIN_MSS and told.mode == PLAIN then
        item:add_proto_expert_info(E.oversize)
    end
end

local function summary(p, told, flags, text)
    local kind = KINDS[p.kind] or string.format("type 0x%02x", p.kind)
    local parts = { kind .. " seq=" .. p.seqno }
    if p.ackno ~= NO_ACK and p.kind ~= SYN then
        parts[#parts + 1] = "ack=" .. p.ackno
    end
    if p.kind == DATA then
        parts[#parts + 1] = "len=" .. p.bytes
        parts[#parts + 1] = "[" .. flags .. "]"
    end
    local line = table.concat(parts, " ") .. text
    if told.retransmission then
        line = "[retransmission] " .. line
    elseif told.out_of_order then
        line = "[out of order] " .. line
    elseif told.duplicate_ack then
        line = "[duplicate ack " .. told.duplicate_ack .. "] " .. line
    end
    return line
end

-- Shows a header that is not all there, as far as it goes.
local function show_cut_off(tvb, pinfo, tree)
    local size = tvb:captured_len()
    if size >= 2 then tree:add(F.magic, tvb(0, 2)) end
    if size >= 3 then tree:add(F.net_flags, tvb(2, 1)) end
    if size >= 4 then tree:add(F.msg_flags, tvb(3, 1)) end
    if size >= 8 then tree:add(F.seqno, tvb(4, 4)) end
    if size >= 12 then tree:add(F.ackno, tvb(8, 4)) end
    local short = tvb:reported_len() < HEADER
    local told = short and "A header of " .. tvb:reported_len() .. " bytes, 54 are needed"
        or "Only " .. size .. " bytes of the header were captured"
    tree:add_proto_expert_info(short and E.truncated or E.not_captured, told)
    pinfo.cols.info = told
end

function mnp.dissector(tvb, pinfo, root)
    if tvb:captured_len() < 2 or tvb(0, 2):uint() ~= MAGIC then
        return 0
    end
    pinfo.cols.protocol = "MNP"
    local tree = root:add(mnp, tvb())
    if tvb:captured_len() < HEADER then
        show_cut_off(tvb, pinfo, tree)
        return tvb:captured_len()
    end
    local p = {
        kind = tvb(2, 1):uint(), msg_flags = tvb(3, 1):uint(), seqno = tvb(4, 4):uint(),
        ackno = tvb(8, 4):uint(), bytes = tvb:reported_len() - HEADER,
        frame = pinfo.number, time = pinfo.rel_ts,
    }
    if p.kind == SYN or p.kind == SYN_ACK then
        p.offer = read_offer(tvb)
    end
    local key = pinfo.number
    local told = by_frame[key]
    if not told or not pinfo.visited then
        told = KINDS[p.kind] and analyse(pinfo, tvb, p) or { stream = 0, mode = "unknown" }
        by_frame[key] = told
    end
    tree:add(F.magic, tvb(0, 2))
    local kind = tree:add(F.net_flags, tvb(2, 1))
    local flags = add_flags(tree, tvb(3, 1), F.msg_flags, MSG_FLAGS, "msg_", "no flags")
    tree:add(F.seqno, tvb(4, 4))
    local ackno = tree:add(F.ackno, tvb(8, 4))
    if p.ackno == NO_ACK and p.kind == DATA then
        ackno:append_text(" (none)")
    end
    local text
    if not KINDS[p.kind] then
        kind:add_proto_expert_info(E.type)
        text = ""
    elseif p.offer then
        text = show_offer(tree, tvb, p)
        show_stamps(tree, tvb)
    elseif told.mode == EXTENDED and p.kind ~= SYN and p.kind ~= SYN_ACK then
        text = show_extended(tree, tvb, p, told)
    else
        text = show_plain(tree, tvb, p)
    end
    show_payload(tree, tvb, p, told)
    if KINDS[p.kind] then
        show_analysis(tree, told, p)
    end
    local line = summary(p, told, flags, text)
    pinfo.cols.info = pinfo.src_port .. " > " .. pinfo.dst_port .. " " .. line
    tree:append_text(", " .. line)
    return tvb:captured_len()
end

-- A datagram is mnp when its magic number and packet type say so; what is shorter than a header
-- must belong to a flow that is known, which Wireshark sends to the dissector by itself.
local function heuristic(tvb, pinfo, root)
    if tvb:captured_len() < 3 or tvb:reported_len() < HEADER then
        return false
    end
    if tvb(0, 2):uint() ~= MAGIC or not KINDS[tvb(2, 1):uint()] then
        return false
    end
    pinfo.conversation = mnp
    mnp.dissector(tvb, pinfo, root)
    return true
end

mnp:register_heuristic("udp", heuristic)
DissectorTable.get("udp.port"):add_for_decode_as(mnp)
