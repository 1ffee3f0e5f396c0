-- Settles messages of one bucket of a broadcast in one step: for each message, its credential and its user. Fenced
-- twice: by the owner of the lease, and by the user being in flight. A repetition changes nothing, also within one
-- call.
--
-- KEYS  1 users  2 leases  3 ledger  4 todo  5 flight  6 tally  7 data  8 undelivered  9 sent  10 permits
--       then for each message with a msgid: the key of its delivery failure
-- ARGV  1 broadcast  2 cap on records per user  3 lease in ms  4 margin before expiry in s  5 allowed kinds
--       6 the template whose grants may be leased, or ''
--       7 seconds to keep the broadcast's keys, and the credential of a message with unknown outcome
--       then for each message: openid, owner of the lease, how the lease ends for the credential (see settle.lua), and
--       what happens next:
--           end    the message ends with the ending
--           again  nothing was sent: the user returns to todo, and the permit to the bucket, if the owner still had the
--                  lease
--           hold   the outcome is unknown: the message stays in flight until the next owner sends it again with the
--                  same credential, however the lease was to end
--           next   the next credential is leased for the next owner. If there is none, or another owner is sending with
--                  a grant to the user, the message ends with the ending
--       the next owner or '', the ending or '', and WeChat's msgid or ''. A delivered message with a msgid whose
--       delivery failure is known ends as failed. Otherwise the msgid is kept until an hour after the last one: see
--       late.lua
-- Reply  number of messages that ended with this call, by ending (see count_endings), then for each message that has
--        its next lease: openid, lease (see lease_reply)
--- @include head/records head/totals head/leases head/mark head/take head/release head/broadcast
assert(#KEYS >= 10 and #ARGV >= 14 and #ARGV % 7 == 0, 'broadcast settle: wrong number of arguments')

local users, leases, ledger, flight = KEYS[1], KEYS[2], KEYS[3], KEYS[5]
local id, cap, deadline = ARGV[1], tonumber(ARGV[2]), now_ms + tonumber(ARGV[3])
local margin, kinds, template, keep = tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6], tonumber(ARGV[7])

local openids, names, places, seen, failed_keys, failed = {}, {}, {}, {}, {}, 10
for i = 8, #ARGV, 7 do
  -- Checked before anything is written, because an error halfway would leave partial changes.
  assert(ARGV[i + 2] ~= 'hold' or ARGV[i + 3] == 'hold', 'broadcast settle: a credential is held for its message alone')
  if not seen[ARGV[i]] then
    local n = #openids + 1
    openids[n], names[n], places[n], seen[ARGV[i]] = ARGV[i], message_name(id, ARGV[i]), i, true
  end
  if ARGV[i + 6] ~= '' then
    failed = failed + 1
    failed_keys[i] = KEYS[failed]
  end
end
assert(#KEYS == failed, 'broadcast settle: a key for each msgid')
local all_held = redis.call('HMGET', leases, unpack(names))
local fields = redis.call('HMGET', users, unpack(openids))
local flying = redis.call('SMISMEMBER', flight, unpack(openids))

local reply, endings, landed, again, freed, changed, kept, emptied, sent = { 0 }, {}, {}, {}, {}, {}, {}, {}, {}
for n, openid in ipairs(openids) do
  local at = places[n]
  local owner, verdict, what, next_owner, ending = ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], ARGV[at + 4], ARGV[at + 5]
  local held = all_held[n]
  local state, flags, expiry, tail, holder
  if held then state, flags, expiry, tail, holder = unpack_lease(held) end
  if held and holder == next_owner then
    -- A repetition whose first reply was lost: the next lease exists already.
    reply[#reply + 1] = openid
    reply[#reply + 1] = lease_packed(state, flags, expiry, tail, 0)
  elseif not held or holder == owner then
    local field, expired = drop_expired(fields[n] or '')
    tally(ledger, 'expired', expired)
    -- Without a lease, the message ended long ago, or its user was erased. No message may follow then, because another
    -- replica may have sent it meanwhile.
    local landing = what == 'end' or what == 'again' or not held
    if held then
      if flags >= 128 then field = marks().take_off(field, owner) end
      if what == 'hold' then
        local head = lease_head(now_ms, now_ms + keep * 1000, state - state % 2 + 1, flags, expiry)
        changed[#changed + 1] = names[n]
        changed[#changed + 1] = head .. sub(held, 23)
      else
        field = apply(verdict, field, flags, expiry, tail, cap, ledger)
        local next_flags, next_expiry, next_tail
        if what == 'next' then
          field, next_flags, next_expiry, next_tail = take(field, kinds, margin, template, next_owner, deadline)
        end
        if next_flags then
          changed[#changed + 1] = names[n]
          changed[#changed + 1] = lease_head(deadline, deadline, 0, next_flags, next_expiry)
            .. message_who(next_owner, id, openid) .. next_tail
          reply[#reply + 1] = openid
          reply[#reply + 1] = lease_packed(0, next_flags, next_expiry, next_tail, 0)
        else
          freed[#freed + 1] = names[n]
          landing = true
        end
      end
    end
    if landing and flying[n] == 1 then
      landed[#landed + 1] = openid
      if what == 'again' and held then
        again[#again + 1] = openid
      else
        if ending == 'delivered' and failed_keys[at] then
          local why = redis.call('GET', failed_keys[at])
          if why then ending = failed_later(why) else sent[#sent + 1] = ARGV[at + 6] end
        end
        endings[#endings + 1] = openid
        endings[#endings + 1] = ending ~= '' and ending or 'UNKNOWN'
      end
    end
    if field == '' then
      emptied[#emptied + 1] = openid
    elseif field ~= fields[n] then
      kept[#kept + 1] = openid
      kept[#kept + 1] = field
    end
  end
end
if #kept > 0 then redis.call('HSET', users, unpack(kept)) end
if #emptied > 0 then redis.call('HDEL', users, unpack(emptied)) end
if #changed > 0 then redis.call('HSET', leases, unpack(changed)) end
if #freed > 0 then redis.call('HDEL', leases, unpack(freed)) end
if #landed > 0 then redis.call('SREM', flight, unpack(landed)) end
if #again > 0 then
  redis.call('SADD', KEYS[4], unpack(again))
  redis.call('EXPIRE', KEYS[4], keep)
  local taken = tonumber(redis.call('HGET', KEYS[10], 'taken') or 0)
  if taken > 0 then redis.call('HSET', KEYS[10], 'taken', math.max(0, taken - #again)) end
end
if #sent > 0 then
  redis.call('SADD', KEYS[9], unpack(sent))
  redis.call('EXPIRE', KEYS[9], 3600)
end
reply[1] = count_endings(KEYS[6], KEYS[8], keep, endings)
tally_up(ledger)
return reply
