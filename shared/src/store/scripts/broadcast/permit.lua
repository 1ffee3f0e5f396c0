-- Permits a number of messages of a broadcast to be sent, as far as its state, its canary, the app's daily quota, and the
-- pace of the app and of the broadcast let it. Sent again after a lost reply it permits as many again, and those of the
-- first time count as used: a canary pauses early.
--
-- KEYS  1 record  2 pace of the app  3 pace of the broadcast  4 quota of the day
-- ARGV  1 how many are wanted  2 how many of those permitted before are given back
--       3 messages a second of the app (0: any), 4 those of them that broadcasts may use  5 messages a second of the broadcast (0: any)
--       6 messages a day of the app, unless WeChat told  7 the part of them that broadcasts may use, in thousandths
-- Reply  how many are permitted, why not all: '' | pace MS until more | canary | quota | state STATE (the broadcast does not run)
assert(#KEYS == 4 and #ARGV == 7, 'permit: wrong number of arguments')

local record, app_pace, own_pace, quota = unpack(KEYS)
local wanted, back = tonumber(ARGV[1]), tonumber(ARGV[2])
local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1000000

-- Token buckets: a level that fills at a rate, up to a fifth of a second's worth, and is taken from.
local buckets, wait = {}, 0
local function limit_by(key, field, rate)
  if rate == 0 then return end
  local level, at = unpack(redis.call('HMGET', key, field, field .. '_at'))
  local full = math.max(1, rate / 5)
  -- What single messages took beyond the rate is made up for within a second, and then forgotten.
  level = math.min(full, math.max(-rate, tonumber(level) or full) + math.max(0, now - (tonumber(at) or now)) * rate + back)
  buckets[#buckets + 1] = { key, field, level }
  if level < wanted then wait = math.max(wait, (math.min(wanted, full) - level) / rate) end
  wanted = math.min(wanted, math.max(0, math.floor(level)))
end

local state, canary = unpack(redis.call('HMGET', record, 'state', 'canary'))
local why, about = '', ''
if state ~= 'RUNNING' then wanted, why, about = 0, 'state', state or '' end
if canary then
  canary = tonumber(canary) + back
  if wanted > 0 and canary < wanted then wanted, why = canary, 'canary' end
end
local used, told = unpack(redis.call('HMGET', quota, 'used', 'limit'))
used = math.max(0, (tonumber(used) or 0) - back)
local left = math.floor((tonumber(told) or tonumber(ARGV[6])) * tonumber(ARGV[7]) / 1000) - used
if wanted > 0 and left < wanted then wanted, why = math.max(0, left), 'quota' end
local allowed = wanted
limit_by(app_pace, 'all', tonumber(ARGV[3]))
limit_by(app_pace, 'broadcasts', tonumber(ARGV[4]))
limit_by(own_pace, 'own', tonumber(ARGV[5]))
if wanted < allowed then why, about = 'pace', math.max(1, math.ceil(wait * 1000)) end

for _, bucket in ipairs(buckets) do
  local key, field, level = unpack(bucket)
  redis.call('HSET', key, field, string.format('%.6f', level - wanted), field .. '_at', string.format('%.6f', now))
  redis.call('EXPIRE', key, 3600)
end
if canary then redis.call('HSET', record, 'canary', canary - wanted) end
if wanted > 0 or back > 0 then
  redis.call('HSET', quota, 'used', used + wanted)
  redis.call('EXPIRE', quota, 2 * 24 * 3600)
end
return { wanted, why, about }
