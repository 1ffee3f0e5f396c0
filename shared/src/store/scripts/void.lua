-- Voids the grants of a template, because the user rejected it. What is leased of them is left to its message.
--
-- KEYS  1 users  2 ledger  3 the key by which it is known that this was told before
-- ARGV  1 openid  2 template  3 seconds the key is kept
--       e.g. EVALSHA sha 3 formid:{wx1:7}:users formid:{wx1:7}:ledger formid:{wx1:7}:once:<key> oUser <template> 86400
-- Reply  how many messages the grants permitted; -1 if this was told before, and nothing changed
assert(#KEYS == 3 and #ARGV == 3, 'void: wrong number of arguments')

if not redis.call('SET', KEYS[3], 1, 'NX', 'EX', ARGV[3]) then return -1 end
local before = redis.call('HGET', KEYS[1], ARGV[1]) or ''
local field, uses = void_grants(before, ARGV[2])
if field ~= before then save(KEYS[1], ARGV[1], field) end
tally(KEYS[2], 'discarded', uses)
return uses
