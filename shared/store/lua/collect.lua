-- Stores credentials of users of one bucket. Repeating the call changes nothing, because stored records are recognized.
-- A grant adds uses to the grants of its template, so it needs a dedup key, unless it is a long-term subscription. The
-- key is the caller's, or one made for this call. The latter is kept while the call may be resent. A use that the user
-- accepted before a known rejection is not stored; see void.lua for the user's decisions about a template. The times of
-- acceptances are kept for an hour: WeChat gives up an event within a minute, so only a caller's own queue delays one
-- for longer, and a million acceptances a day would need 200 MB more. A grant also ends the rest of the grants of its
-- template (see rest.lua), even if it is a long-term subscription that is stored already.
--
-- KEYS  1 users  2 ledger  then the dedup key of each grant that has one, followed by the user's decisions if WeChat
--       reported it
-- ARGV  1 cap on records per user  2 seconds to keep the dedup key of a grant
--       then for each credential: openid, and its record (see records.lua). The record of a grant has the number of
--       uses to add in place of the expiry (0: it is a long-term subscription). Its flags are 128 without a dedup key,
--       160 with the caller's, and 161 with one made for this call. They are 162 for one use that WeChat reported: then
--       the time when the user accepted is in place of the expiry. Its id is the template.
--       e.g. EVALSHA sha 2 formid:{wx1:7}:users formid:{wx1:7}:ledger 120 86400 oUser1 <record> oUser2 <record>
-- Reply  the indexes (from 0, in the order given) of those that were stored already, or rejected later
--- @include head/records head/stock head/cap head/grants
assert(#KEYS >= 2 and #ARGV >= 4 and #ARGV % 2 == 0, 'collect: wrong number of arguments')

local cap, count = tonumber(ARGV[1]), #ARGV / 2 - 1
local openids = {}
for i = 1, count do openids[i] = ARGV[2 * i + 1] end
local fields = redis.call('HMGET', KEYS[1], unpack(openids))

local changed, duplicates = {}, {}
local collected, expired, dropped, keys_used = 0, 0, 0, 2
for i = 1, count do
  local openid, record = openids[i], ARGV[2 * i + 2]
  local flags = byte(record, 5)
  local field = changed[openid] or fields[i]
  if flags >= 128 then
    -- Becomes the field with the added uses, or nil if the grant was collected before.
    local new, template, left, rested = true, sub(record, 6, -2)
    local uses = expiry_at(record, 1)
    if flags == 162 then
      local once, decided, at = KEYS[keys_used + 1], KEYS[keys_used + 2], uses
      keys_used, uses = keys_used + 2, 1
      local rejected = tonumber(redis.call('ZSCORE', decided, 'reject') or 0)
      new = at >= rejected and redis.call('SET', once, 1, 'NX', 'EX', ARGV[2])
      if new and at > rejected then
        redis.call('ZADD', decided, at, at)
        -- The rejection is the first.
        redis.call('ZREMRANGEBYRANK', decided, 1, -128)
        if redis.call('TTL', decided) < 3600 then redis.call('EXPIRE', decided, 3600) end
      end
    elseif flags >= 160 then
      keys_used = keys_used + 1
      new = redis.call('SET', KEYS[keys_used], 1, 'NX', 'EX', flags == 161 and 60 or ARGV[2])
    end
    if new then
      new, left, rested = add_uses(field or '', template, uses)
      -- The user accepts the template, so its grants no longer rest.
      if rested then
        field = set_rest(new or field, template)
        if new then new = field else changed[openid] = field end
      end
    end
    if new then
      local over
      collected, dropped = collected + math.max(uses, 1), dropped + left
      field, uses = drop_expired(new)
      field, over = enforce_cap(field, cap)
      expired, dropped = expired + uses, dropped + over
      changed[openid] = field
    else
      duplicates[#duplicates + 1] = i - 1
    end
  elseif not field then
    changed[openid] = record
    collected = collected + flags % 32
  else
    local uses
    if field ~= '' and expiry_at(field, start_of(field, #field)) <= now then
      field, uses = drop_expired(field)
      expired = expired + uses
    end
    local tail = sub(record, 6)
    if locate(field, tail) then
      duplicates[#duplicates + 1] = i - 1
    else
      collected = collected + flags % 32
      field, uses = enforce_cap(insert(field, record), cap)
      dropped = dropped + uses
    end
    changed[openid] = field
  end
end

local pairs_of, n = {}, 0
for openid, field in pairs(changed) do
  pairs_of[n + 1], pairs_of[n + 2] = openid, field
  n = n + 2
end
if n > 0 then redis.call('HSET', KEYS[1], unpack(pairs_of)) end
tally(KEYS[2], 'collected', collected)
tally(KEYS[2], 'expired', expired)
tally(KEYS[2], 'dropped', dropped)
return duplicates
