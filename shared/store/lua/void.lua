-- Revokes the grants of a template because the user rejected it. A leased use of them stays with its message. Repeating
-- the call with the same dedup key changes nothing.
--
-- WeChat's events arrive in any order. The user's decisions about the template are a sorted set of times: that of the
-- last rejection, as the member `reject`, and those of acceptances since. An acceptance before the rejection counts no
-- more (collect.lua). As many uses as were accepted since the rejection stay, and so does a long-term subscription then.
-- Uses are interchangeable, so it may be that some that stay belong to before, and that the later ones were spent.
--
-- KEYS  1 users  2 ledger  3 dedup key of the event  4 the user's decisions about the template
-- ARGV  1 openid  2 template  3 seconds to keep the dedup key and the rejection  4 when the user rejected (s)
--       e.g. EVALSHA sha 4 formid:{wx1:7}:users formid:{wx1:7}:ledger formid:{wx1:7}:once:<key>
--       formid:{wx1:7}:decided:<user>:<template> oUser <template> 86400 1800000000
-- Reply  how many messages the revoked grants permitted; -1 if the event was reported before, and nothing changed
--- @include head/records head/stock head/grants head/void
assert(#KEYS == 4 and #ARGV == 4, 'void: wrong number of arguments')

if not redis.call('SET', KEYS[3], 1, 'NX', 'EX', ARGV[3]) then return -1 end
local at, decided = tonumber(ARGV[4]), KEYS[4]
-- A later rejection has revoked all that this one would.
if at < tonumber(redis.call('ZSCORE', decided, 'reject') or 0) then return 0 end
redis.call('ZREMRANGEBYSCORE', decided, '-inf', at)
local since = redis.call('ZCARD', decided)
redis.call('ZADD', decided, at, 'reject')
redis.call('EXPIRE', decided, ARGV[3])

local before = redis.call('HGET', KEYS[1], ARGV[1]) or ''
if since > 0 and locate(before, ARGV[2] .. string.char(127, #ARGV[2])) then return 0 end
local field, uses = void_grants(before, ARGV[2])
local stay = math.min(uses, since)
if stay > 0 then
  field = add_uses(field, ARGV[2], stay)
  uses = uses - stay
end
if field ~= before then save(KEYS[1], ARGV[1], field) end
tally(KEYS[2], 'discarded', uses)
return uses
