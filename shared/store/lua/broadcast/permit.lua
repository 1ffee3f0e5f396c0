-- Grants permits for messages of one bucket of a broadcast, as far as its state, its canary, the app's daily quota, and
-- the pace of the app and of the broadcast allow. Permits are granted here, received by the bucket, and there taken by
-- messages or returned: see permits.lua. A permit is open until it is returned or its message has ended. Open permits
-- count as used and may be returned, so the limit of a canary or a quota is reached only when none is open.
--
-- All numbers of a bucket are totals since the beginning. The call may therefore run twice, or with old numbers:
-- permits that were granted and not received yet are part of what this call asks for.
--
-- KEYS  1 record  2 pace of the app  3 pace of the broadcast  4 quota of the day
--       5 permits of the broadcast: for each bucket the numbers granted, returned and ended, and their day; and the
--         number of open permits
-- ARGV  1 bucket  2 number of permits wanted in addition to those left in the bucket
--       the bucket's totals: 3 received  4 returned  5 ended
--       6 the day of the quota
--       7 messages per second of the app (0: no limit)  8 the part of them that broadcasts may use
--       9 messages per second of the broadcast (0: no limit)
--       10 messages per day of the app, unless WeChat reported its limit  11 the part of them that broadcasts may use,
--         in thousandths
--       12 seconds the numbers are kept
--       e.g. EVALSHA sha 5 formid:{wx1}:broadcast:<id> formid:{wx1}:pace formid:{wx1}:broadcast:<id>:pace
--       formid:{wx1}:quota:template:20412 formid:{wx1}:broadcast:<id>:permits 7 16 24 0 20 20412 0 0 0 1000000 800
--       172800
-- Reply  total permits granted, then the reason if fewer than wanted are granted:
--        '' | pace MS until more | canary | state STATE (the broadcast is not running)
--        quota UNSURE     1 if WeChat reported the day's number while permits were open, so that some may count twice
--        open WHY NUMBER  the limit of the canary or the quota (WHY) is reached, but this number of permits is open
assert(#KEYS == 5 and #ARGV == 12, 'permit: wrong number of arguments')

local record, app_pace, own_pace, quota, permits = unpack(KEYS)
local bucket, day, keep = ARGV[1], ARGV[6], ARGV[12]
local wanted = tonumber(ARGV[2])
local received, returned, ended = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1000000

-- Computes the change of the bucket's permits since its last report. If the bucket's numbers expired here or were lost,
-- its permits were counted when they were granted.
local known = redis.call('HGET', permits, bucket)
local old = { granted = received, returned = returned, ended = received - returned, day = '' }
if known then
  local granted, given_back, over, of = string.match(known, '^(%d+) (%d+) (%d+) (%d+)$')
  old = { granted = tonumber(granted), returned = tonumber(given_back), ended = tonumber(over), day = of }
  returned, ended = math.max(returned, old.returned), math.max(ended, old.ended)
end
local granted = math.max(old.granted, received)
local was_open = math.max(0, old.granted - old.returned - old.ended)
local open = math.max(0, granted - returned - ended)
local more = granted - returned - (old.granted - old.returned)
local back = math.max(0, -more)

-- Token buckets: a level that fills at a rate, up to the amount of a fifth of a second, and is taken from.
local buckets, wait = {}, 0
local function limit_by(key, field, rate)
  if rate == 0 then return end
  local level, at = unpack(redis.call('HMGET', key, field, field .. '_at'))
  local full = math.max(1, rate / 5)
  -- Single messages may exceed the rate. The excess is compensated within a second, and then forgotten.
  level = math.min(full, math.max(-rate, tonumber(level) or full) + math.max(0, now - (tonumber(at) or now)) * rate + back)
  buckets[#buckets + 1] = { key, field, level }
  if level < wanted then wait = math.max(wait, (math.min(wanted, full) - level) / rate) end
  wanted = math.min(wanted, math.max(0, math.floor(level)))
end

wanted = math.max(0, wanted - (granted - received))
local state, canary = unpack(redis.call('HMGET', record, 'state', 'canary'))
local why, about, number = '', ''
if state ~= 'RUNNING' then wanted, why, about = 0, 'state', state or '' end
local all_open = math.max(0, tonumber(redis.call('HGET', permits, 'open') or 0) + open - was_open)
if canary then
  canary = tonumber(canary) - more
  if wanted > 0 and canary < wanted then
    wanted, why = math.max(0, canary), 'canary'
    if wanted == 0 and all_open > 0 then why, about, number = 'open', 'canary', all_open end
  end
end
-- Permits that are open from another day may be used on this one.
local same = old.day == day
local used, told, day_open, unsure = unpack(redis.call('HMGET', quota, 'used', 'limit', 'open', 'unsure'))
used = math.max(0, (tonumber(used) or 0) + (same and more or open))
day_open = math.max(0, (tonumber(day_open) or 0) + (same and open - was_open or open))
local left = math.floor((tonumber(told) or tonumber(ARGV[10])) * tonumber(ARGV[11]) / 1000) - used
if wanted > 0 and left < wanted then
  wanted, why, about = math.max(0, left), 'quota', unsure == '1' and 1 or 0
  if wanted == 0 and day_open > 0 then why, about, number = 'open', 'quota', day_open end
end
local allowed = wanted
limit_by(app_pace, 'all', tonumber(ARGV[7]))
limit_by(app_pace, 'broadcasts', tonumber(ARGV[8]))
limit_by(own_pace, 'own', tonumber(ARGV[9]))
if wanted < allowed then why, about = 'pace', math.max(1, math.ceil(wait * 1000)) end

for _, one in ipairs(buckets) do
  local key, field, level = unpack(one)
  redis.call('HSET', key, field, string.format('%.6f', level - wanted), field .. '_at', string.format('%.6f', now))
  redis.call('EXPIRE', key, 3600)
end
if wanted > 0 or more ~= 0 or open ~= was_open or open > 0 and not same then
  granted = granted + wanted
  redis.call('HSET', permits, bucket, string.format('%d %d %d %s', granted, returned, ended, day))
  redis.call('HSET', permits, 'open', all_open + wanted)
  redis.call('EXPIRE', permits, keep)
  redis.call('HSET', quota, 'used', used + wanted, 'open', day_open + wanted)
  redis.call('EXPIRE', quota, keep)
  if canary then redis.call('HSET', record, 'canary', canary - wanted) end
end
return { granted, why, about, number }
